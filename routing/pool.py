"""A place at work: its replicas, its fair queue, its prefix index. A provider is a place with one address."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from routing.choice import DEFAULT_WEIGHTS, Features, Weights, choose, explain
from routing.errors import NoTargetError, QueueFullError, QueueTimeoutError
from routing.fair_queue import FairQueue, Ticket
from routing.prefix import PrefixIndex, block_hashes, chars_of
from routing.replica import Lease, Replica
from routing.specs import Endpoint, PlaceSpec

_CHARS_PER_TOKEN = 4
UpstreamFactory = Callable[[PlaceSpec, Endpoint], Any]
_MIN_RETRY_MS = 1_000


class Place:
    """Takes calls in fairly, puts each on the best replica that has room, and takes its share back."""

    def __init__(
        self,
        spec: PlaceSpec,
        connect: UpstreamFactory,
        now: Callable[[], float],
        weights: Weights = DEFAULT_WEIGHTS,
    ) -> None:
        self.spec = spec
        self.now = now
        self.weights = weights
        self.index = PrefixIndex()
        self.replicas: list[Replica] = []
        self.retiring: list[Replica] = []
        self.queue = FairQueue(self._put, now, spec.max_waiting)
        self._connect = connect
        self._turn = 0
        self._wake: asyncio.TimerHandle | None = None
        self.reconfigure(spec)

    def reconfigure(self, spec: PlaceSpec) -> None:
        """Take over a changed specification: replicas that stay the same keep connections, counters and health."""
        same_way = self.replicas and _way(spec) == _way(self.spec)
        old = {replica.endpoint: replica for replica in self.replicas} if same_way else {}
        gone = [replica for replica in self.replicas if replica.endpoint not in spec.endpoints or not old]
        used = sum(replica.bit for replica in [*old.values(), *self.retiring])
        self.spec = spec
        self.total_s = spec.timeouts.total / 1_000
        self.queue.max_waiting = spec.max_waiting
        self.replicas = []
        for endpoint in spec.endpoints:
            replica = old.get(endpoint)
            if replica is None:
                bit = _free_bit(used)
                used |= bit
                replica = Replica(
                    endpoint,
                    bit,
                    self._connect(spec, endpoint),
                    spec.tokens_per_replica,
                    spec.concurrency_per_replica,
                )
            replica.token_capacity = spec.tokens_per_replica
            replica.call_capacity = spec.concurrency_per_replica
            self.replicas.append(replica)
        for replica in gone:
            self._retire(replica)
        self.queue.pump()

    def hashes(self, text: str, seed: int, tenant: str) -> list[int]:
        """Return the block hashes of a prompt's beginning; none where there is no choice to make."""
        if len(self.replicas) < 2 or not text:
            return []
        return block_hashes(text, hash((seed, tenant)))

    def available(self, now: float) -> str:
        """Return an empty string when some replica may be used, else why none may."""
        reason = ""
        for replica in self.replicas:
            reason = replica.refusing(now)
            if not reason:
                return ""
        return reason or "no_replicas"

    def try_acquire(self, lease: Lease, *, retry: bool = False) -> bool:
        """Take a share of the place if there is room and nobody waits before: ``lease.replica`` is set then.

        On False the lease stands in the queue: await :meth:`wait`. Raises :class:`QueueFullError`, and
        :class:`NoTargetError` when no replica may be used at all.
        """
        if self.queue.submit(lease, front=retry):
            return True
        refusal = self._nobody()
        if refusal is None:
            return False
        self.queue.cancel(lease)
        raise refusal

    async def wait(self, lease: Lease, deadline: float | None) -> None:
        """Wait for a share of the place; ``lease.replica`` is set when it is there.

        Raises :class:`QueueTimeoutError`, or :class:`QueueFullError` when the lease had to make room for a tenant that
        crowds the queue less. Cancelling leaves the queue at once.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int | None] = loop.create_future()
        lease.on_ready = lambda: None if ready.done() else ready.set_result(None)
        lease.on_evicted = lambda ms: None if ready.done() else ready.set_result(ms)
        wait_s = self.spec.max_wait_ms / 1_000
        if deadline is not None:
            wait_s = min(wait_s, max(deadline - self.now(), 0.0))
        timer = loop.call_later(wait_s, lambda: None if ready.done() else ready.set_result(-1))
        try:
            evicted = await ready
        except asyncio.CancelledError:
            self.abandon(lease)
            raise
        finally:
            timer.cancel()
            lease.on_ready = lease.on_evicted = None
        if evicted is None or lease.state == "running":
            return
        retry_after = self.queue.retry_after_ms() if evicted < 0 else evicted
        self.abandon(lease)
        if evicted < 0:
            raise QueueTimeoutError(
                "The call waited too long for the model; try again later.", retry_after_ms=retry_after
            )
        raise QueueFullError("The model's queue is full; try again later.", retry_after_ms=retry_after)

    def release(self, lease: Lease, input_tokens: int, output_tokens: int) -> None:
        """End a lease with what was really served; whoever waits moves up. Idempotent."""
        replica = lease.replica
        if replica is None or lease.state != "running":
            return
        replica.give_back(lease)
        self.queue.finish(lease, input_tokens, output_tokens)
        if replica.retired and not replica.in_flight_calls:
            self._close(replica)

    def abandon(self, lease: Lease) -> None:
        """Undo a lease that its caller no longer wants, waiting or dispatched: nothing was served, nobody failed."""
        if lease.state == "waiting":
            self.queue.cancel(lease)
        elif lease.state == "running":
            if lease.replica is not None:
                lease.replica.breaker.abandoned()
            self.release(lease, 0, 0)

    def progress(self, lease: Lease, output_tokens: int) -> None:
        """``output_tokens`` have streamed so far."""
        if output_tokens > lease.seen_output and lease.replica is not None and lease.state == "running":
            lease.replica.grow(lease, output_tokens)
            self.queue.progress(lease, output_tokens)

    def failed(self, replica: Replica, *, unreachable: bool) -> None:
        """A call failed at this replica: count it, and forget its cache when nobody listens there any more."""
        now = self.now()
        if replica.breaker.failed(now):
            self._pump_at(replica.breaker.opens_at(now))
        if unreachable and self.spec.kind == "pool" and replica.unreachable():
            self.index.purge(replica.bit)

    def recovered(self, replica: Replica) -> None:
        """A health check brought a replica back."""
        replica.breaker.recovered(self.now())
        self.queue.pump()

    def close(self) -> None:
        """Retire every replica: running calls end, nothing new is taken."""
        if self._wake is not None:
            self._wake.cancel()
        for replica in self.replicas:
            self._retire(replica)
        self.replicas = []

    @property
    def in_flight(self) -> int:
        """Calls that hold a share, on retiring replicas too."""
        return sum(replica.in_flight_calls for replica in [*self.replicas, *self.retiring])

    def explain(self, lease: Lease) -> dict[str, Any]:
        """Return why the lease got its replica, as plain data."""
        if lease.choice is None or lease.snapshots is None:
            return {"reason": "only_replica", "candidates": [], "rejected": []}
        return explain(lease.choice, lease.snapshots)

    def _put(self, ticket: Ticket) -> bool:
        """Put a ticket on the best replica with room. The queue calls this, also while nobody waits."""
        assert isinstance(ticket, Lease)
        now = self.now()
        if len(self.replicas) == 1:
            return self._put_on_only(self.replicas[0], ticket, now)
        snapshots = [replica.snapshot(now) for replica in self.replicas]
        cached: dict[int, int] = {}
        if ticket.hashes:
            everyone = 0
            for replica in self.replicas:
                everyone |= replica.bit
            for bit, blocks in self.index.match(ticket.hashes, everyone).items():
                cached[bit] = min(chars_of(blocks) // _CHARS_PER_TOKEN, ticket.input_tokens)
        self._turn += 1
        features = Features(ticket.input_tokens, ticket.cost, cached, ticket.tried, self._turn)
        choice = choose(features, snapshots, self.weights)
        if not choice.ranked:
            return False
        best = choice.ranked[0]
        ticket.choice, ticket.snapshots, ticket.features = choice, snapshots, features
        self._take(self.replicas[best.position], ticket, best.cached_tokens, now)
        return True

    def _put_on_only(self, replica: Replica, lease: Lease, now: float) -> bool:
        """The path without a choice: providers and pools of one."""
        if replica.in_flight_calls >= replica.call_capacity:
            return False
        if replica.in_flight_calls and replica.in_flight_tokens + lease.cost > replica.token_capacity:
            return False
        if not replica.breaker.closed and not replica.breaker.allows(now):
            return False
        self._take(replica, lease, 0, now)
        return True

    def _take(self, replica: Replica, lease: Lease, cached_tokens: int, now: float) -> None:
        if not replica.breaker.closed:
            replica.breaker.took(now)
        replica.take(lease, cached_tokens)
        if lease.hashes:
            self.index.insert(lease.hashes, replica.bit)

    def _nobody(self) -> NoTargetError | None:
        """Return the refusal when every breaker is open: waiting in the queue would help nobody."""
        now = self.now()
        if any(replica.breaker.allows(now) for replica in self.replicas):
            return None
        opens = min((replica.breaker.opens_at(now) for replica in self.replicas), default=now)
        wait_ms = max(round((opens - now) * 1_000), _MIN_RETRY_MS)
        return NoTargetError(f"{self.spec.name} is failing; try again later.", retry_after_ms=wait_ms)

    def _pump_at(self, when: float) -> None:
        """Look at the queue again when a breaker lets a probe through."""
        if self._wake is not None:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_later(
            max(when - self.now(), 0.0) + 0.001, self.queue.pump
        )

    def _retire(self, replica: Replica) -> None:
        replica.retired = True
        self.index.purge(replica.bit)
        if replica.in_flight_calls:
            self.retiring.append(replica)
        else:
            replica.upstream.close()

    def _close(self, replica: Replica) -> None:
        if replica in self.retiring:
            self.retiring.remove(replica)
        replica.upstream.close()


def _way(spec: PlaceSpec) -> tuple[object, ...]:
    """Return what a connection depends on besides its address."""
    return (
        spec.headers, spec.timeouts, spec.tls, spec.max_connections, spec.dialect, spec.base_url, spec.responses, spec.fault,
    )  # fmt: skip


def _free_bit(used: int) -> int:
    """Return the lowest bit that is not in use."""
    bit = 1
    while used & bit:
        bit <<= 1
    return bit
