"""Starting real `airi up` trees for tests, and looking at what they print."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.live import free_port

ROOT = Path(__file__).parents[2]
READY = "AIRI ready on "


class Tree:
    """A running `airi up`. ``lines`` is what it printed so far."""

    def __init__(self, home: Path, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.port = free_port()
        self.lines: list[str] = []
        clean = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        self.environment = {
            **clean,
            "AIRI_HOME": str(home),
            "AIRI_PORT": str(self.port),
            "AIRI_SIM_SPEED": "20",
            **(environment or {}),
        }
        self._fresh: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "airi", "up", "--logs", "files"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        """The gateway's address."""
        return f"http://127.0.0.1:{self.port}"

    def key(self, name: str = "dev") -> str:
        """The key in ``NAME.key``."""
        return (self.home / f"{name}.key").read_text().strip()

    def wait_for(self, start: str, seconds: float = 90) -> str:
        """Return the first line that begins with ``start`` (leading spaces aside); fail with all that was printed."""
        end = time.monotonic() + seconds
        for line in self.lines:
            if line.strip().startswith(start):
                return line
        while True:
            try:
                line = self._fresh.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {start!r} within {seconds} s:\n" + "\n".join(self.lines)) from None
            if line is None:
                raise AssertionError(f"ended without {start!r}:\n" + "\n".join(self.lines))
            if line.strip().startswith(start):
                return line

    def processes(self) -> list[psutil.Process]:
        """Everything below the supervisor, however deep."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def pid_of(self, module: str, *, other_than: int = 0) -> int | None:
        """The process that runs a module of the tree, or ``None`` when there is none (yet)."""
        for process in self.processes():
            try:
                if module in process.cmdline() and process.pid != other_than:
                    return process.pid
            except psutil.NoSuchProcess:  # gone, or a zombie
                continue
        return None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it in order and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(10)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                self.lines.append(line.rstrip("\n"))
                self._fresh.put(line.rstrip("\n"))
        self._fresh.put(None)


@contextmanager
def running(home: Path, **environment: str) -> Iterator[Tree]:
    """A tree that is ready; stopped in order at the end, or killed when it will not stop."""
    tree = Tree(home, environment)
    try:
        tree.wait_for(READY)
        yield tree
        tree.stop()
    finally:
        if tree.process.poll() is None:
            tree.process.kill()
            tree.stop()
