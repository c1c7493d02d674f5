"""A real writer process, and emitters that talk to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from airi.settings import Settings
from observability.emitter import Emitter, EmitterLimits


class WriterProcess:
    """``python -m observability.writer`` under an AIRI_HOME of its own."""

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self.settings = Settings.from_environment({"AIRI_HOME": str(home)})
        self._environment = {**os.environ, **environment, "AIRI_HOME": str(home)}
        self._log = home / "writer.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says READY."""
        read, write = os.pipe()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "observability.writer"],
                env={**self._environment, "AIRI_READY_FD": str(write)},
                pass_fds=[write],
                stderr=log,
            )
        os.close(write)
        with os.fdopen(read, "rb") as ready:
            assert ready.readline() == b"READY\n", self._log.read_text()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def get(self, path: str, accept: str = "*/*") -> httpx.Response:
        """Ask the writer's HTTP socket."""
        transport = httpx.HTTPTransport(uds=str(self.settings.sockets / "writer-http.sock"))
        with httpx.Client(transport=transport, base_url="http://writer") as client:
            return client.get(path, headers={"accept": accept})


@pytest.fixture
def make_writer(home: Path) -> Iterator[Callable[..., WriterProcess]]:
    """Make a writer with more environment; it is stopped after the test."""
    made: list[WriterProcess] = []

    def make(**environment: str) -> WriterProcess:
        made.append(WriterProcess(home, environment))
        return made[-1]

    yield make
    for writer in made:
        if writer.process is not None and writer.process.poll() is None:
            writer.kill()


@pytest.fixture
def writer(make_writer: Callable[..., WriterProcess]) -> WriterProcess:
    """A running writer."""
    started = make_writer()
    started.start()
    return started


@pytest.fixture
async def make_emitter(home: Path) -> AsyncIterator[Callable[..., Emitter]]:
    """Make emitters for this home; they are closed after the test."""
    made: list[Emitter] = []
    socket = Settings.from_environment({"AIRI_HOME": str(home)}).writer_socket

    def make(name: str = "gateway-0", **limits: float) -> Emitter:
        made.append(Emitter(socket, name, EmitterLimits(**{"flush_s": 0.01, "pulse_s": 0.1, **limits})))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for emitter in made:
        await emitter.close(patience_s=0)


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait until the condition holds; fail after the deadline."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
