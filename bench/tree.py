"""The processes of a live tree, as somebody with a signal in hand sees them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.support.live import Live, wait_until

ROLES = {
    "gateway": "gateway.process",
    "control": "gateway.control",
    "writer": "observability.writer",
    "worker": "agents.worker",
    "redis": "redis-server",
    "sim": "routing.sim",
}
"""What the command line of each role holds."""


def pids(live: Live, role: str) -> list[int]:
    """Return the process ids of a role, oldest first; only children of this very tree."""
    assert live.process is not None
    found: list[tuple[float, int]] = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(live.process.pid).children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = child.cmdline()
                if "shim.py" not in " ".join(words[:4]) and any(ROLES[role] in word for word in words):
                    found.append((child.create_time(), child.pid))
    return [pid for _, pid in sorted(found)]


def pid(live: Live, role: str, index: int = 0) -> int:
    """Return one process id of a role, waiting for it when the process is being started."""
    found: list[int] = wait_until(lambda: (now := pids(live, role)) and len(now) > index and now, 20)
    return found[index]


def kill(live: Live, role: str, index: int = 0, patience_s: float = 30) -> tuple[int, int]:
    """SIGKILL a process; return its id and that of the one which the supervisor has started in its place."""
    victim = pid(live, role, index)
    before = set(pids(live, role))
    os.kill(victim, signal.SIGKILL)
    return victim, int(wait_until(lambda: next(iter(set(pids(live, role)) - before), 0), patience_s))


@contextmanager
def paused(live: Live, role: str) -> Iterator[int]:
    """SIGSTOP a process for as long as the block lasts: it is there, and does not answer."""
    victim = pid(live, role)
    os.kill(victim, signal.SIGSTOP)
    try:
        yield victim
    finally:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
