"""What is done to the tree while runs are in flight. Each returns what it did: who was killed, who came instead."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from agents.faults import POINTS
from bench import tree
from bench.chaos.world import Batch, World
from tests.support.live import wait_until

Act = Callable[[World, Batch], dict[str, Any]]
_ROUNDS = 4
_LEASE_AND_MORE_S = 5.0
_PASSES = {"claim": 8, "intent": 8, "call": 6, "response": 6, "commit": 8, "publish": 1, "ack": 3}
"""How often a point is passed before it kills: when all twenty runs are under way."""


def at_point(point: str) -> Act:
    """A worker beside the tree's own that dies at a named point, after it has passed it some times."""

    def act(made: World, batch: Batch) -> dict[str, Any]:
        dying = made.worker(f"{point}:{_PASSES[point]}")
        made.start(batch, 20)
        for _ in range(_ROUNDS):  # others publish and acknowledge too: it may take some more runs
            try:
                dying.wait(15)
                break
            except subprocess.TimeoutExpired:
                made.start(batch, 5)
        status = dying.poll()
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the worker ended with {status} before it came to {point!r}")
        return {"killed": dying.pid, "new": tree.pid(made.live, "worker"), "in_flight": made.in_flight(batch)}

    return act


def at_time(role: str, delay_s: float, count: int = 20) -> Act:
    """SIGKILL of a process of the tree some time after the runs were started; the supervisor brings another."""

    def act(made: World, batch: Batch) -> dict[str, Any]:
        made.start(batch, count)
        if role == "worker":
            made.busy_worker()
        time.sleep(delay_s)
        in_flight = made.in_flight(batch)
        killed, new = tree.kill(made.live, role)
        return {"killed": killed, "new": new, "in_flight": in_flight}

    return act


def while_paying(made: World, batch: Batch) -> dict[str, Any]:
    """SIGKILL of the worker while an effect that must not be repeated is applied, and its answer not yet there."""
    made.start(batch, 20)
    victim = made.busy_worker()
    before = set(tree.pids(made.live, "worker"))
    paid = made.paying()
    wait_until(lambda: made.paying() > paid, 60, 0.01)
    os.kill(victim, signal.SIGKILL)
    in_flight = made.in_flight(batch)
    new = wait_until(lambda: next(iter(set(tree.pids(made.live, "worker")) - before), 0), 30)
    return {"killed": victim, "new": new, "in_flight": in_flight}


def zombie(made: World, batch: Batch) -> dict[str, Any]:
    """SIGSTOP of a worker past its leases, then SIGCONT: what it goes on with must not be recorded."""
    sleeper = made.worker()
    made.start(batch, 20)
    held = wait_until(lambda: made.holds(sleeper.pid), 30, 0.01)
    os.kill(sleeper.pid, signal.SIGSTOP)
    in_flight = made.in_flight(batch)
    time.sleep(_LEASE_AND_MORE_S)
    os.kill(sleeper.pid, signal.SIGCONT)
    return {
        "killed": sleeper.pid,
        "new": tree.pid(made.live, "worker"),
        "in_flight": in_flight,
        "leases_held": held,
    }


def storm(made: World, batch: Batch, count: int = 20, pause_s: float = 1.5) -> dict[str, Any]:
    """One process of every role after the other, while the one before is still coming back."""
    made.start(batch, count)
    made.busy_worker()
    in_flight = made.in_flight(batch)
    pairs = []
    for role in ("worker", "gateway", "redis", "control", "writer"):
        pairs.append(tree.kill(made.live, role))
        time.sleep(pause_s)
    return {"killed": [old for old, _ in pairs], "new": [new for _, new in pairs], "in_flight": in_flight}


def matrix() -> dict[str, Act]:
    """Return every scenario of ``make chaos`` by name."""
    found: dict[str, Act] = {f"worker, at {point}": at_point(point) for point in POINTS}
    for delay_s in (0.3, 2.0):
        for role in ("worker", "gateway", "control", "redis", "writer"):
            found[f"{role}, after {delay_s:g} s"] = at_time(role, delay_s)
    found["worker, in an unsafe call"] = while_paying
    found["worker, stopped past its leases"] = zombie
    found["every role in turn"] = storm
    return found


def quick() -> dict[str, Act]:
    """Return the short form for the test suite."""
    return {
        "every role in turn": lambda made, batch: storm(made, batch, 10, 1.0),
    }
