"""Fixtures of this room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from airi.embedded.redis import find_redis, wait_for_redis


class OwnRedis:
    """A Redis that a test may kill; each start is an empty new server on the same socket."""

    def __init__(self, socket: Path, folder: Path) -> None:
        self.url = f"unix://{socket}"
        self._socket = socket
        self._folder = folder
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)
        options = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(self._folder)]
        child = subprocess.Popen([str(find_redis().path), *options], stdout=subprocess.DEVNULL)
        self.children.append(child)
        wait_for_redis(self._socket)
        return child


@pytest.fixture
def own_redis(short_tmp: Path, tmp_path: Path, redis_server: str) -> Iterator[OwnRedis]:
    """A Redis of the test's own, not started yet (``redis_server`` says whether there is a binary at all)."""
    own = OwnRedis(short_tmp / f"own-{os.urandom(4).hex()}.sock", tmp_path)
    yield own
    for child in own.children:
        child.kill()
        child.wait(10)
