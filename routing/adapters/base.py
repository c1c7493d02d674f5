"""What an adapter offers the router, whatever the dialect."""

from __future__ import annotations

from typing import Protocol

from routing.call import Call, Header


class UpstreamResponse(Protocol):
    """An answer in OpenAI's dialect. ``headers`` have lower-case names."""

    status: int
    headers: list[Header]

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of ``name``."""

    async def read(self, limit: int) -> bytes:
        """Return the rest of the body, at most ``limit`` bytes."""

    async def next_block(self) -> bytes | None:
        """Return bytes as they arrive; ``None`` after the last."""

    def close(self) -> None:
        """End the exchange: an unfinished one is cut at once."""


class Upstream(Protocol):
    """One address that calls are sent to. Errors are those of :mod:`airi.http.errors`."""

    async def send(self, call: Call, model: str, drop: tuple[str, ...], total_ms: int) -> UpstreamResponse:
        """Send ``call`` as a call of ``model`` and return when the head of the answer is there."""

    def close(self) -> None:
        """Keep no connection; what is under way may end."""
