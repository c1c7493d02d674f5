"""Durations of the engine. The defaults suit production; tests and the chaos harness shorten them by environment."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

PREFIX = "AIRI_RUNS_"


@dataclass(frozen=True, slots=True)
class Tuning:
    """All in milliseconds, except ``slots`` and ``threads``. ``AIRI_RUNS_LEASE_MS=2000`` and so on set them."""

    lease_ms: int = 10_000
    """How long a step stays with a worker that is not heard of; renewed every quarter of it."""
    watch_ms: int = 500
    """How often a worker looks whether its runs were stopped."""
    reap_ms: int = 500
    """How often overdue leases and timers are looked for."""
    republish_ms: int = 30_000
    """When a message that nobody acted on is sent again (doubled each time)."""
    republish_max_ms: int = 600_000
    slots: int = 256
    """Steps that one worker process works on at a time; a step that waits for a workflow called as a model is free."""
    threads: int = 16
    """Celery threads of one worker process: claims, database work and function tools."""
    drain_ms: int = 30_000
    """How long steps may go on after SIGTERM before their leases are given back."""

    @classmethod
    def from_environment(cls) -> Tuning:
        """Read ``AIRI_RUNS_*``; raise :class:`ValueError` naming the variable."""
        given: dict[str, int] = {}
        for item in fields(cls):
            name = PREFIX + item.name.upper()
            text = os.environ.get(name, "")
            if text and not (text.isdigit() and int(text) > 0):
                raise ValueError(f"{name}: expected a whole number above 0, got {text!r}")
            if text:
                given[item.name] = int(text)
        return cls(**given)


@cache
def machine() -> str:
    """Names this boot of this machine and this namespace of process ids; empty where that cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return ""
    return f"{socket.gethostname()[:16]}.{boot}.{namespace:x}"


def owner_name() -> str:
    """Who holds the leases of this process: machine, pid and the process's start, so that no pid is mistaken."""
    return f"{machine() or socket.gethostname()[:24]}/{os.getpid()}/{_start_of(os.getpid())}"


def surely_dead(owner: str) -> bool:
    """Whether a lease's owner was a process of this machine that is gone (its lease need not run out first)."""
    place, _, rest = owner.partition("/")
    pid, _, start = rest.partition("/")
    if not machine() or place != machine() or not pid.isdigit() or start == "0":
        return False
    return _start_of(int(pid)) != start


def _start_of(pid: int) -> str:
    """Start time of a process in clock ticks since boot; ``0`` when it is gone, a zombie, or cannot be read."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return "0" if after_name[0] in ("Z", "X") else after_name[19]
