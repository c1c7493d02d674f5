"""The router: choose a place, wait for a share of it, send, and try elsewhere as long as nobody has seen a byte."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable

from airi.http.errors import HttpClientError, Truncated
from routing.adapters.base import UpstreamResponse
from routing.answer import Answer
from routing.call import Attempt, Call
from routing.errors import NoTargetError, QueueFullError, QueueTimeoutError, UpstreamTimeoutError
from routing.fleet import Fleet, PlaceStatus
from routing.outcome import Failure, of_error, of_status, passed_back
from routing.plan import Plan, first_usable, ordered
from routing.pool import Place, UpstreamFactory
from routing.registry import Route, RouteTarget, RoutingTable
from routing.replica import Lease

_ERROR_BODY_LIMIT = 64 * 1024
DEFAULT_BODY_LIMIT = 64 << 20
_Refusal = QueueFullError | QueueTimeoutError | NoTargetError


class Router:
    """Sends calls. One per gateway process; everything it does happens on that process's event loop."""

    def __init__(
        self,
        *,
        connect: UpstreamFactory | None = None,
        now: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        body_limit: int = DEFAULT_BODY_LIMIT,
        probe: bool = True,
    ) -> None:
        self._now = now
        self._draw = draw
        self._body_limit = body_limit
        self.fleet = Fleet(now, connect, probe=probe)

    async def apply(self, table: RoutingTable) -> None:
        """Serve by ``table`` from now on. Places that stay keep their connections; those that go drain."""
        await self.fleet.apply(table)

    async def close(self) -> None:
        """Stop probing and close every connection that no call uses."""
        await self.fleet.close()

    def status(self) -> list[PlaceStatus]:
        """Describe every place and replica: load, health, breaker, queue."""
        return self.fleet.status()

    async def send(self, call: Call) -> Answer:
        """Route a call and return its answer: of a stream when its first block is there, else when it is whole.

        Raises the contract's 400, :class:`QueueFullError`, :class:`QueueTimeoutError`, :class:`NoTargetError` and
        :class:`UpstreamError`; each carries the attempts. An error status of an upstream is an answer, in OpenAI's form.
        """
        drop = call.route.check(call.needs)
        flight = _Flight(self, call, drop)
        answer = await flight.along(call.route)
        if answer is None:
            for fallback in call.route.usable_fallbacks(call.needs, call.input_tokens):
                answer = await flight.along(fallback, drop=())
                if answer is not None:
                    break
        return flight.verdict() if answer is None else answer


class _Flight:
    """One call on its way: what has been tried, and what the last try said."""

    __slots__ = (
        "_attempts",
        "_call",
        "_drop",
        "_failed",
        "_now",
        "_refused",
        "_router",
        "_skipped",
        "_started",
    )

    def __init__(self, router: Router, call: Call, drop: tuple[str, ...]) -> None:
        self._router = router
        self._call = call
        self._drop = drop
        self._now = router._now
        self._started = router._now()
        self._attempts: list[Attempt] = []
        self._skipped: list[tuple[str, str]] = []
        self._failed: tuple[Failure, Route, RouteTarget, str] | None = None
        self._refused: _Refusal | None = None

    async def along(self, route: Route, drop: tuple[str, ...] | None = None) -> Answer | None:
        """Try the targets of one route; ``None`` when it is exhausted. A failure nobody can mend is an answer."""
        router, call = self._router, self._call
        fields = self._drop if drop is None else drop
        places, draw = router.fleet.places, router._draw
        targets = ordered(route, call.session, draw)
        target = first_usable(targets, places, self._started, self._skipped)
        outcome, bit = await self._attempt(route, target, fields, 0)
        if isinstance(outcome, Answer):
            return outcome
        plan = Plan(targets, route.retries, places, draw)
        while outcome.elsewhere:
            following = plan.after(target, bit, outcome, self._now())
            if following is None:
                return None
            target, delay = following
            if delay:
                if call.deadline is not None and self._now() + delay >= call.deadline:
                    return None
                await asyncio.sleep(delay)
            outcome, bit = await self._attempt(route, target, fields, plan.tried.get(target.place, 0))
            if isinstance(outcome, Answer):
                return outcome
        return self.verdict()

    def verdict(self) -> Answer:
        """End without a success: the last upstream's answer if one may be passed on, else raise what happened."""
        if self._failed is not None:
            failure, route, target, name = self._failed
            if failure.error is None:
                answer = Answer(
                    status=failure.status,
                    headers=failure.headers,
                    target=name,
                    route=route,
                    to=target,
                    attempts=self._attempts,
                    skipped=self._skipped,
                )
                answer.whole(failure.body)
                return answer
            failure.error.attempts = tuple(self._attempts)
            raise failure.error
        refused = self._refused or NoTargetError("No place can serve this model now.", retry_after_ms=1_000)
        refused.attempts = tuple(self._attempts)
        raise refused

    async def _attempt(
        self, route: Route, target: RouteTarget, drop: tuple[str, ...], tried: int
    ) -> tuple[Answer | Failure, int]:
        """Try one target once. Returns the answer or the failure, and the bit of the replica that was tried (0: none)."""
        call, place = self._call, self._router.fleet.find(target.place)
        started = self._now()
        if place is None:
            return self._refuse(route, target, started, NoTargetError(f"{target.place} was removed.")), 0
        lease = Lease(
            call.tenant,
            call.weight,
            call.input_tokens,
            call.predicted_output_tokens,
            call.priority,
            place.hashes(call.prefix_text, route.seed, call.tenant),
        )
        lease.tried = tried
        try:
            if not place.try_acquire(lease, retry=bool(self._attempts)):
                await place.wait(lease, call.deadline)
        except (QueueFullError, QueueTimeoutError, NoTargetError) as error:
            return self._refuse(route, target, started, error), 0
        replica = lease.replica
        assert replica is not None
        sent = self._now()
        try:
            outcome = await self._exchange(place, lease, route, target, drop, sent)
        except BaseException:
            # Cancelled in whatever phase, or a fault of ours: the share goes back at once, nobody is blamed.
            place.abandon(lease)
            raise
        if isinstance(outcome, Failure):
            if outcome.blame:
                place.failed(replica, unreachable=outcome.unreachable)
            else:
                replica.breaker.abandoned()
            if outcome.retry_after_s:
                replica.cooling_until = self._now() + outcome.retry_after_s
            place.release(lease, 0, 0)
            self._note(
                route, target, replica.name, outcome.code, outcome.status, started, sent, outcome.detail
            )
            self._failed = (outcome, route, target, replica.name)
            return outcome, replica.bit
        self._note(route, target, replica.name, "ok", outcome.status, started, sent, "")
        return outcome, replica.bit

    async def _exchange(
        self,
        place: Place,
        lease: Lease,
        route: Route,
        target: RouteTarget,
        drop: tuple[str, ...],
        sent: float,
    ) -> Answer | Failure:
        """Send, and read up to the commit point: the first block of a stream, the whole of anything else."""
        call, replica = self._call, lease.replica
        assert replica is not None
        response: UpstreamResponse | None = None
        kept, sent_before = False, call.sent
        try:
            total_ms = self._remaining_ms(place, sent)
            if total_ms <= 0:
                return self._too_late()
            call.sent = True  # until it is known that nothing was served: the caller may leave at any moment
            response = await replica.upstream.send(call, target.model, drop, total_ms)
            if response.status >= 300 or response.status < 200:
                body = await response.read(_ERROR_BODY_LIMIT)
                call.sent = sent_before
                return of_status(response.status, response.headers, body, route.alias, place.spec.api_key)
            first = await response.next_block() if call.stream else None
            body = b"" if call.stream else await response.read(self._router._body_limit)
            if call.stream and first is None:
                raise Truncated("The stream ended before it began.")
            kept = True
        except HttpClientError as error:
            call.sent = sent_before or error.reached_upstream
            return of_error(error, route.alias)
        finally:
            if response is not None and not kept:
                response.close()
        replica.first_byte(lease)
        replica.breaker.succeeded(self._now())
        answer = Answer(
            status=response.status,
            headers=passed_back(response.headers),
            target=replica.name,
            route=route,
            to=target,
            attempts=self._attempts,
            skipped=self._skipped,
        )
        answer.leased(place, lease)
        if first is None:
            answer.whole(body)
        else:
            answer.streaming(response, first)
        return answer

    def _remaining_ms(self, place: Place, now: float) -> int:
        """What is left of the call's own time: the place's total time-out from the start, or the deadline."""
        end = self._started + place.total_s
        if self._call.deadline is not None:
            end = min(end, self._call.deadline)
        return math.ceil((end - now) * 1_000)

    def _too_late(self) -> Failure:
        error = UpstreamTimeoutError(
            "The call's time was over before it could be sent.", code="deadline_exceeded", reached=False
        )
        return Failure("deadline_exceeded", False, False, error=error, blame=False)

    def _refuse(self, route: Route, target: RouteTarget, started: float, error: _Refusal) -> Failure:
        """A place did not take the call: elsewhere perhaps, here not again."""
        self._refused = error
        self._note(route, target, target.place, error.code, 0, started, self._now(), "")
        return Failure(error.code, True, False)

    def _note(
        self,
        route: Route,
        target: RouteTarget,
        name: str,
        outcome: str,
        status: int,
        started: float,
        sent: float,
        detail: str,
    ) -> None:
        now = self._now()
        self._attempts.append(
            Attempt(
                name,
                target.model,
                route.label,
                outcome,
                status,
                int((started - self._started) * 1e6),
                int((sent - started) * 1e6),
                int((now - sent) * 1e6),
                detail,
            )
        )
