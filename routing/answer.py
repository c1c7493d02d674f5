"""What the router hands back: an answer under way, with its lease of a replica."""

from __future__ import annotations

from typing import Any

from airi.http.errors import HttpClientError
from routing.adapters.base import UpstreamResponse
from routing.call import Attempt, Header
from routing.outcome import of_error
from routing.pool import Place
from routing.prices import TokenPrice
from routing.registry import Route, RouteTarget
from routing.replica import Lease


class Answer:
    """An upstream's answer. Close it in a ``finally``: that gives the lease back and cuts what is unfinished.

    ``status`` and ``headers`` (only what the caller may see) are there; :meth:`read` returns the body of an unstreamed answer
    or of an error, :meth:`next_block` the bytes of a stream as they arrive. ``price`` is that of the target that served.
    """

    __slots__ = (
        "_body",
        "_ended",
        "_first",
        "_lease",
        "_place",
        "_response",
        "_skipped",
        "attempts",
        "headers",
        "model",
        "price",
        "region",
        "responses",
        "route",
        "simulated",
        "status",
        "target",
    )

    def __init__(
        self,
        *,
        status: int,
        headers: list[Header],
        target: str,
        route: Route,
        to: RouteTarget,
        attempts: list[Attempt],
        skipped: list[tuple[str, str]],
    ) -> None:
        self.status = status
        self.headers = headers
        self.target = target
        self.route = route
        self.model = to.model
        self.price: TokenPrice | None = to.price
        self.region = to.region
        self.responses = to.responses
        self.simulated = to.simulated
        self.attempts = attempts
        self._skipped = skipped
        self._body: bytes | None = None
        self._first: bytes | None = None
        self._response: UpstreamResponse | None = None
        self._place: Place | None = None
        self._lease: Lease | None = None
        self._ended = True

    @property
    def version(self) -> str:
        """``alias@version`` of what served: a fallback's own where one did."""
        return self.route.label

    @property
    def explanation(self) -> dict[str, Any]:
        """Why this place: the choice among replicas with scores and reasons, and the targets that were passed over."""
        chosen: dict[str, Any] = {"reason": "no_choice", "candidates": [], "rejected": []}
        if self._place is not None and self._lease is not None:
            chosen = self._place.explain(self._lease)
        return {
            "target": self.target,
            "version": self.version,
            **chosen,
            "passed_over": [{"target": target, "reason": reason} for target, reason in self._skipped],
        }

    def whole(self, body: bytes) -> None:
        """Give the answer its complete body (the router's side)."""
        self._body = body

    def streaming(self, response: UpstreamResponse, first: bytes) -> None:
        """Give the answer its stream, of which the first block was already read (the router's side)."""
        self._response = response
        self._first = first
        self._ended = False

    def leased(self, place: Place, lease: Lease) -> None:
        """Give the answer the lease that it holds until it is closed (the router's side)."""
        self._place = place
        self._lease = lease

    async def read(self) -> bytes:
        """Return the whole body. Only for answers that are not streamed: the router read it, bounded, before the answer."""
        assert self._body is not None, "a stream is read block by block"
        return self._body

    async def next_block(self) -> bytes | None:
        """Return bytes as they arrive, not cut at events; ``None`` after the last. Raises :class:`UpstreamError`."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._response is None or self._ended:
            body, self._body = self._body, None
            return body
        try:
            block = await self._response.next_block()
        except HttpClientError as error:
            self._ended = True
            failure = of_error(error, self.route.alias)
            self._blame()
            assert failure.error is not None
            failure.error.attempts = tuple(self.attempts)
            raise failure.error from error
        if block is None:
            self._ended = True
        return block

    def progress(self, output_tokens: int) -> None:
        """Say that ``output_tokens`` have streamed so far, so that the fair queue charges what goes beyond the prediction."""
        if self._place is not None and self._lease is not None:
            self._place.progress(self._lease, output_tokens)

    def close(
        self,
        output_tokens: int = 0,
        input_tokens: int | None = None,
        cached_tokens: int = 0,
        *,
        failed: bool = False,
    ) -> None:
        """Give the lease back with what was really served; cut an unfinished stream. Idempotent.

        ``failed``: the stream ended without its terminal event; the breaker counts it.
        """
        if failed and self._lease is not None and self._lease.state == "running":
            self._blame()
        if not self._ended and self._response is not None:
            self._ended = True
            self._response.close()
        if self._place is not None and self._lease is not None:
            served = self._lease.input_tokens if input_tokens is None else input_tokens
            self._place.release(self._lease, max(served - cached_tokens, 0), output_tokens)

    def _blame(self) -> None:
        if self._place is not None and self._lease is not None and self._lease.replica is not None:
            self._place.failed(self._lease.replica, unreachable=False)
