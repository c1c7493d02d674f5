"""Which processes may hold reservations: known in SQL before they may spend, so that a rebuild can wait for them."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

from sqlalchemy import Engine, select, update

from airi.clock import unix_ms
from airi.database import write
from policies.schema import PROCESSES


def process_name() -> str:
    """Return a new name of this process: host, space of process ids, process id, and a random end."""
    return f"{_here()}:{os.getpid()}:{secrets.token_hex(4)}"


def _here() -> str:
    """Name the space in which a process id means one process."""
    space = boot = "-"
    if Path("/proc/self/ns/pid").exists():
        space = str(Path("/proc/self/ns/pid").stat().st_ino)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:8]
    return f"{socket.gethostname()[:100].replace(':', '-')}/{boot}/{space}"


def register_process(engine: Engine, process: str) -> None:
    """Make a process known. Call it before :class:`policies.admission.Admission` starts."""
    now = unix_ms()
    with write(engine) as connection:
        connection.execute(
            PROCESSES.insert().values(process=process, started_at_ms=now, seen_at_ms=now, ended=0)
        )


def unregister_process(engine: Engine, process: str) -> None:
    """Say that a process has ended in order: it holds nothing."""
    with write(engine) as connection:
        connection.execute(update(PROCESSES).where(PROCESSES.c.process == process).values(ended=1))


def living(engine: Engine) -> list[str]:
    """Return the known processes that are not known to be dead."""
    with engine.connect() as connection:
        names = connection.scalars(select(PROCESSES.c.process).where(PROCESSES.c.ended == 0)).all()
    return [name for name in names if not _dead(name)]


def _dead(process: str) -> bool:
    """Whether it ran here and runs no more. (An id that was given to another process since reads as alive.)"""
    here, _, rest = process.partition(":")
    if here != _here():
        return False
    try:
        os.kill(int(rest.partition(":")[0]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
