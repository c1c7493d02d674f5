"""All places that are at work, kept in step with the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from routing.adapters.base import Upstream
from routing.adapters.openai import OpenAIUpstream
from routing.adapters.unusable import UnusableUpstream
from routing.pool import Place, UpstreamFactory
from routing.prober import Prober
from routing.registry import RoutingTable
from routing.replica import Replica
from routing.specs import Endpoint, PlaceSpec

_GRACE_S = 15.0
"""A removed place stays reachable at least so long for calls that were resolved before, and until they are over."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as the dashboard and the metrics show it."""

    name: str
    place: str
    health: str
    breaker: str
    in_flight_calls: int
    in_flight_tokens: int
    token_capacity: int
    running: int
    queued: int
    kv_usage: float
    scrape_age_s: float
    simulated: bool


@dataclass(frozen=True, slots=True)
class PlaceStatus:
    """A place as the dashboard and the metrics show it. ``counters`` are the fair queue's, by tenant."""

    name: str
    kind: str
    waiting: int
    waiting_tokens: int
    waiting_by_tenant: dict[str, int]
    counters: dict[str, float]
    replicas: tuple[ReplicaStatus, ...]


def connect_by_dialect(spec: PlaceSpec, endpoint: Endpoint) -> Upstream:
    """Return the adapter for an address. ``openai`` goes as bytes, everything else through litellm."""
    if spec.fault:
        return UnusableUpstream(spec.fault)
    if spec.dialect == "openai":
        return OpenAIUpstream(spec, endpoint)
    # Brings httpx along; most gateways translate nothing and start faster and smaller without.
    from routing.adapters.litellm import LitellmUpstream

    return LitellmUpstream(spec, endpoint)


class Fleet:
    """Places by key (``pool:NAME``, ``provider:NAME``), their probers, and those that drain."""

    def __init__(self, now: Callable[[], float], connect: UpstreamFactory | None, *, probe: bool) -> None:
        self._now = now
        self._connect = connect or connect_by_dialect
        self._probe = probe
        self.places: dict[str, Place] = {}
        self._leaving: dict[str, Place] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._probers: dict[Replica, Prober] = {}

    def find(self, key: str) -> Place | None:
        """Return a place; one that was just removed still serves the calls that began before."""
        return self.places.get(key) or self._leaving.get(key)

    async def apply(self, table: RoutingTable) -> None:
        """Add, change and remove places. Never interrupts a call."""
        for key in [key for key in self.places if key not in table.places]:
            self._leave(key)
        for key, spec in table.places.items():
            place = self.places.get(key)
            if place is None:
                self.places[key] = Place(spec, self._connect, self._now)
            elif place.spec != spec:
                place.reconfigure(spec)
            # A thousand providers are built without keeping the calls under way waiting.
            await asyncio.sleep(0)
        self._reconcile_probers()

    async def close(self) -> None:
        """Stop probing and retire every place."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for prober in self._probers.values():
            prober.stop()
        self._probers.clear()
        for place in [*self.places.values(), *self._leaving.values()]:
            place.close()
        self.places.clear()
        self._leaving.clear()
        # One turn of the loop, so that cancelled probers and closed sockets are gone when this returns.
        await asyncio.sleep(0)

    def status(self) -> list[PlaceStatus]:
        """Describe all places, in order of name."""
        return [_status(key, place, self._now()) for key, place in sorted(self.places.items())]

    def _leave(self, key: str) -> None:
        """Take a place out of service; calls of the snapshot before may still reach it for a while."""
        earlier = self._leaving.pop(key, None)
        if earlier is not None:
            earlier.close()
        self._leaving[key] = self.places.pop(key)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_GRACE_S, self._sweep)

    def _sweep(self) -> None:
        """Close the places that left and have nothing to do any more."""
        self._sweeper = None
        for key, place in list(self._leaving.items()):
            if not place.in_flight and not place.queue.waiting:
                self._leaving.pop(key).close()
        if self._leaving:
            self._sweeper = asyncio.get_running_loop().call_later(_GRACE_S, self._sweep)

    def _reconcile_probers(self) -> None:
        """Watch exactly the replicas of pools that serve."""
        if not self._probe:
            return
        watched = {
            replica: place
            for place in self.places.values()
            if place.spec.kind == "pool" and not place.spec.fault
            for replica in place.replicas
        }
        for replica in [replica for replica in self._probers if replica not in watched]:
            self._probers.pop(replica).stop()
        for replica, place in watched.items():
            if replica not in self._probers:
                self._probers[replica] = Prober(place, replica)


def _status(key: str, place: Place, now: float) -> PlaceStatus:
    queue = place.queue.state()
    return PlaceStatus(
        name=key,
        kind=place.spec.kind,
        waiting=queue.waiting,
        waiting_tokens=queue.waiting_tokens,
        waiting_by_tenant=queue.waiting_by_tenant,
        counters=queue.counters,
        replicas=tuple(
            ReplicaStatus(
                name=replica.name,
                place=key,
                health=replica.health,
                breaker=replica.breaker.state(now),
                in_flight_calls=replica.in_flight_calls,
                in_flight_tokens=replica.in_flight_tokens,
                token_capacity=replica.token_capacity,
                running=replica.running,
                queued=replica.queued,
                kv_usage=replica.kv_usage,
                scrape_age_s=now - replica.scraped_at if replica.scraped_at else -1.0,
                simulated=place.spec.simulated,
            )
            for replica in place.replicas
        ),
    )
