"""One replica of a pool (or the one address of a provider) as this process sees it."""

from __future__ import annotations

from typing import Literal

from routing.adapters.base import Upstream
from routing.breaker import Breaker
from routing.choice import Choice, Features, ReplicaSnapshot
from routing.fair_queue import Ticket
from routing.specs import Endpoint

Health = Literal["unknown", "up", "down"]
_FAILURES_TO_DOWN = 3
_SUCCESSES_TO_UP = 2
_STALE_INTERVALS = 6
_MEAN_WEIGHT = 0.05


class Lease(Ticket):
    """A call's share of one replica. Made by the router, filled in by the queue when it is dispatched."""

    __slots__ = ("choice", "features", "hashes", "held", "prefill", "replica", "snapshots", "tried")

    def __init__(
        self, tenant: str, weight: float, input_tokens: int, predicted: int, priority: int, hashes: list[int]
    ) -> None:
        super().__init__(tenant, weight, input_tokens, predicted, priority)
        self.hashes = hashes
        self.tried = 0
        self.replica: Replica | None = None
        self.choice: Choice | None = None
        self.features: Features | None = None
        self.snapshots: list[ReplicaSnapshot] | None = None
        self.held = 0
        self.prefill = 0


class Replica:
    """Load, health and breaker of one address. Local in-flight work is the first signal; scrapes only correct it."""

    def __init__(
        self, endpoint: Endpoint, bit: int, upstream: Upstream, token_capacity: int, call_capacity: int
    ) -> None:
        self.endpoint = endpoint
        self.name = endpoint.name
        self.bit = bit
        self.upstream = upstream
        self.breaker = Breaker()
        self.health: Health = "unknown"
        self.token_capacity = token_capacity
        self.call_capacity = call_capacity
        self.in_flight_tokens = 0
        self.in_flight_calls = 0
        self.pending_prefill = 0
        self.cooling_until = 0.0
        self.retired = False
        self.scraped_at = 0.0
        self.running = 0
        self.queued = 0
        self.kv_usage = 0.0
        self._external_calls = 0
        self._stale_s = 1.0
        self._mean_cost = 1_000.0
        self._streak = 0

    def take(self, lease: Lease, cached_tokens: int) -> None:
        """Count a dispatched call. Its prompt, less what is cached, is pending until the first byte."""
        lease.replica = self
        lease.held = lease.cost
        lease.prefill = max(lease.input_tokens - cached_tokens, 0)
        self.in_flight_tokens += lease.held
        self.in_flight_calls += 1
        self.pending_prefill += lease.prefill
        self._mean_cost += _MEAN_WEIGHT * (lease.cost - self._mean_cost)

    def first_byte(self, lease: Lease) -> None:
        """The call's prompt is prefilled."""
        self.pending_prefill -= lease.prefill
        lease.prefill = 0

    def grow(self, lease: Lease, output_tokens: int) -> None:
        """More has streamed than was predicted: hold it too."""
        beyond = lease.input_tokens + output_tokens - lease.held
        if beyond > 0:
            lease.held += beyond
            self.in_flight_tokens += beyond

    def give_back(self, lease: Lease) -> None:
        """Stop counting a call."""
        self.in_flight_tokens -= lease.held
        self.in_flight_calls -= 1
        self.pending_prefill -= lease.prefill
        lease.held = lease.prefill = 0

    def refusing(self, now: float) -> str:
        """Return why the replica must not be used now, or an empty string."""
        if not self.breaker.closed and not self.breaker.allows(now):
            return "breaker_open"
        if self.health == "down":
            return "down"
        return "cooling" if self.cooling_until > now else ""

    def snapshot(self, now: float) -> ReplicaSnapshot:
        """Return the replica at this moment."""
        external = 0
        if self._external_calls:
            fresh = 1.0 - (now - self.scraped_at) / self._stale_s
            if fresh > 0:
                external = int(self._external_calls * self._mean_cost * fresh)
        well = self.breaker.closed and self.health != "down" and self.cooling_until <= now
        return ReplicaSnapshot(
            self.name,
            self.bit,
            "" if well else self.refusing(now),
            self.in_flight_tokens,
            self.in_flight_calls,
            self.pending_prefill,
            external,
            self.token_capacity,
            self.call_capacity,
        )

    def scraped(self, now: float, running: int, queued: int, kv_usage: float, interval_s: float) -> None:
        """Take in the engine's own load. What it has beyond our calls is others' work."""
        self.scraped_at = now
        self.running, self.queued, self.kv_usage = running, queued, kv_usage
        self._external_calls = max(running + queued - self.in_flight_calls, 0)
        self._stale_s = interval_s * _STALE_INTERVALS

    def checked(self, well: bool) -> bool:
        """Take in a health check; return True when the state changed. Three failures bring it down, two successes up."""
        if well != (self._streak > 0):
            self._streak = 0
        self._streak += 1 if well else -1
        before = self.health
        if well and (before == "unknown" or self._streak >= _SUCCESSES_TO_UP):
            self.health = "up"
        elif not well and self._streak <= -_FAILURES_TO_DOWN:
            self.health = "down"
        return before != self.health

    def unreachable(self) -> bool:
        """A call found nobody listening: down at once, until health checks say otherwise. True when that is news."""
        self._streak = -_FAILURES_TO_DOWN
        news = self.health != "down"
        self.health = "down"
        return news
