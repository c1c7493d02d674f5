"""A whole AIRI on this machine, started as a user starts it, for tests, documentation checks and chaos."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from airi.up.home import free_ports

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """Return a TCP port that nobody listens on just now."""
    return free_ports(1, [])[0]


class Live:
    """``airi up`` in a home of its own. ``stop`` drains it; ``kill`` ends it at once."""

    def __init__(self, home: Path, config: str | None = None, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith("AIRI_") and not k.endswith("_API_KEY")
            },
            "AIRI_HOME": str(home),
            "AIRI_PORT": str(self.port),
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        if config is not None:
            path = home / "airi.yaml"
            path.write_text(config)
            self.environment["AIRI_CONFIG"] = str(path)
        self.output = home / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, patience_s: float = 60.0) -> Self:
        """Start and wait for the ready line."""
        with self.output.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airi", "up"], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + patience_s
        while "AIRI ready on " not in self.log():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"AIRI did not become ready:\n{self.log()[-6000:]}")
            time.sleep(0.05)
        return self

    def log(self) -> str:
        """Return what ``airi up`` has printed."""
        return self.output.read_text() if self.output.exists() else ""

    def stop(self, patience_s: float = 45.0) -> int:
        """Ask it to end and return its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s)

    def kill(self) -> None:
        """End it with SIGKILL; its children must follow by themselves."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    @property
    def key(self) -> str:
        """The development tenant's key."""
        return (self.home / "dev.key").read_text().strip()

    @property
    def admin_key(self) -> str:
        """The administrator's key."""
        return (self.home / "admin.key").read_text().strip()

    def client(self, key: str | None = None) -> httpx.Client:
        """Return an HTTP client with a key (the development tenant's when none is given)."""
        return httpx.Client(
            base_url=self.base,
            headers={"authorization": f"Bearer {key or self.key}"},
            timeout=30,
            trust_env=False,
        )

    def admin(self) -> httpx.Client:
        """Return an HTTP client with the administrator's key."""
        return self.client(self.admin_key)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def wait_until(check, patience_s: float = 10.0, every_s: float = 0.05):  # type: ignore[no-untyped-def]
    """Return the first true value of ``check()``; fail when none comes in time."""
    deadline = time.monotonic() + patience_s
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"nothing came of {check} within {patience_s} s"
        time.sleep(every_s)
