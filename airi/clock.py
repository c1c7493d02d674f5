"""Time. Code that must run in virtual time takes a :class:`Clock`; everything else uses the functions."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A source of time that a simulator can replace."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin."""

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` of this clock."""


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Return :func:`time.monotonic`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(seconds)


def unix_ms() -> int:
    """Return the wall clock in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000
