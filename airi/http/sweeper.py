"""One coarse timer for many deadlines: nothing is scheduled or cancelled per call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Sweeper:
    """Calls ``sweep(now)`` after the delay in seconds that it last asked for (``inf``: until woken)."""

    __slots__ = ("_due", "_handle", "_loop", "_sweep")

    def __init__(self, loop: asyncio.AbstractEventLoop, sweep: Callable[[float], float]) -> None:
        self._loop = loop
        self._sweep = sweep
        self._handle: asyncio.TimerHandle | None = None
        self._due = math.inf

    def wake(self, delay: float) -> None:
        """Sweep no later than in ``delay`` seconds."""
        due = self._loop.time() + delay
        if self._handle is not None:
            if due >= self._due:
                return
            self._handle.cancel()
        self._due = due
        self._handle = self._loop.call_later(delay, self._fire)

    def stop(self) -> None:
        """Forget what was asked for."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        delay = self._sweep(self._loop.time())
        if delay != math.inf:
            self.wake(delay)
