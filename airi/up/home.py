"""AIRI_HOME: private folders, one tree at a time, and the files with the first keys."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from random import SystemRandom

from airi.settings import Settings
from airi.up.errors import StartError

_LEFTOVERS_S = 8.0
"""How long to wait for the last of a killed tree to be gone."""
_PORTS = range(20_000, 29_000)


def prepare_home(settings: Settings) -> bool:
    """Make the folders, readable by this user alone; return whether this is the first start here."""
    first = not (settings.home / "airi.lock").exists()
    for folder in (settings.home, settings.home / "logs", settings.sockets):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartError(
                f"{folder} cannot be made ({error.strerror}); choose another AIRI_HOME"
            ) from error
        found = folder.stat()
        if found.st_uid != os.getuid():
            raise StartError(f"{folder} belongs to another user; choose another AIRI_HOME")
        if stat.S_IMODE(found.st_mode) & 0o077:
            folder.chmod(0o700)
    return first


def lock_home(home: Path) -> int:
    """Take AIRI_HOME for this process and its children; return the descriptor that holds the lock.

    Children inherit it, so that a home is free only when the last of its processes has ended: two Redis servers
    must never share an append-only file. Raises :class:`StartError` that names who holds it.
    """
    descriptor = os.open(home / "airi.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + _LEFTOVERS_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            if holder.isdigit() and _lives(int(holder)):
                os.close(descriptor)
                raise StartError(
                    f"AIRI already runs on {home} (process {holder}); stop it, or choose another AIRI_HOME"
                ) from None
            if time.monotonic() > end:
                os.close(descriptor)
                raise StartError(
                    f"processes of an earlier start still hold {home} (see: fuser {home / 'airi.lock'}); end them first"
                ) from None
            time.sleep(0.1)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_port_free(host: str, port: int, variable: str) -> None:
    """Raise :class:`StartError` when something listens on the address already.

    The gateways bind it with SO_REUSEPORT, which would silently share it with another AIRI of this user.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except socket.gaierror as error:
            raise StartError(f"AIRI_HOST: {host} is no address of this machine ({error.strerror})") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StartError(f"AIRI_HOST: {host} is no address of this machine") from error
            raise StartError(
                f"{host}:{port} is not free ({error.strerror}); choose another port with {variable}=PORT"
            ) from error


def free_ports(count: int, preferred: list[int]) -> list[int]:
    """Return ``count`` TCP ports that are free on the loopback, those preferred first (an earlier start's).

    Others come from below the range out of which kernels give ports to outgoing connections: such a connection could
    take a port between this look at it and the moment a child listens on it, at its start or at a later one.
    """
    found: list[int] = []
    for port in [*preferred[:count], *SystemRandom().sample(_PORTS, 50 + count)]:
        if len(found) == count:
            break
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen(1)
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
