"""Where events happen: the machine's time under an event loop, or virtual time that jumps from event to event."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

Event = Callable[[], None]


class Timeline(Protocol):
    """A clock that also calls back. Seconds from an arbitrary origin."""

    def monotonic(self) -> float:
        """Return the present."""

    def schedule(self, at: float, event: Event) -> None:
        """Call ``event`` at ``at`` (at once in turn, when that is past)."""


class VirtualTime:
    """Events in order of time, then of scheduling; nothing ever waits."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._count = 0
        self._events: list[tuple[float, int, Event]] = []

    def monotonic(self) -> float:
        """Return the virtual present."""
        return self._now

    def schedule(self, at: float, event: Event) -> None:
        """Call ``event`` when the virtual present reaches ``at``."""
        self._count += 1
        heapq.heappush(self._events, (max(at, self._now), self._count, event))

    def run_until(self, until: float) -> None:
        """Let everything up to and including ``until`` happen; the present is ``until`` afterwards."""
        events = self._events
        while events and events[0][0] <= until:
            self._now, _, event = heapq.heappop(events)
            event()
        self._now = max(self._now, until)

    def run(self) -> None:
        """Let everything happen; the present is the last event's time afterwards."""
        events = self._events
        while events:
            self._now, _, event = heapq.heappop(events)
            event()


class LoopTime:
    """The running event loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.monotonic = loop.time
        self._call_at = loop.call_at

    def schedule(self, at: float, event: Event) -> None:
        """Call ``event`` when the loop reaches ``at``."""
        self._call_at(at, event)
