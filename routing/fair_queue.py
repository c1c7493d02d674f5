"""The fair queue of a pool: Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI '24).

Each tenant has a counter of the service it received, divided by its weight. While the pool has room the waiting tenant
with the smallest counter is served next. A tenant that comes back from idleness is lifted to the others, so that nobody
saves up service. Two tenants that both wait all the time differ by at most ``2U`` of service,
``U = max(w_input * longest input, w_output * tokens the pool can hold)``.

At a gateway the output is not known when a call is sent: input and *predicted* output are charged then, what streams
beyond the prediction as it comes, and the difference is given back at the end. Everything here is synchronous and
asks for no clock but the one handed in; :mod:`routing.pool` waits on it, the laboratory drives it in virtual time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Literal

from routing.errors import QueueFullError

W_INPUT = 1.0
W_OUTPUT = 2.0
"""A decoded token costs an engine about twice a prompt token (the paper's setting)."""
_MAX_IDLE_TENANTS = 4_096
_RATE_WINDOW_S = 10.0
_MIN_RETRY_MS, _MAX_RETRY_MS = 1_000, 60_000

State = Literal["new", "waiting", "running", "done"]


class Ticket:
    """A call's place in the queue and, once dispatched, its share of the pool.

    ``cost`` is what it holds of the pool's capacity: input and predicted output tokens.
    """

    __slots__ = (
        "cost",
        "input_tokens",
        "on_evicted",
        "on_ready",
        "predicted",
        "priority",
        "seen_output",
        "state",
        "tenant",
        "weight",
    )

    def __init__(
        self, tenant: str, weight: float, input_tokens: int, predicted_output_tokens: int, priority: int = 0
    ) -> None:
        self.tenant = tenant
        self.weight = weight
        self.input_tokens = input_tokens
        self.predicted = predicted_output_tokens
        self.seen_output = predicted_output_tokens
        """Output tokens charged so far: the prediction, or what has streamed beyond it."""
        self.cost = input_tokens + predicted_output_tokens
        self.priority = priority
        self.state: State = "new"
        self.on_ready: Callable[[], None] | None = None
        self.on_evicted: Callable[[int], None] | None = None


class _Tenant:
    """One tenant's counter and its waiting tickets, by priority and then in order of arrival."""

    __slots__ = ("counter", "entry", "levels", "name", "running", "waiting", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.counter = 0.0
        self.entry = -1
        self.waiting = 0
        self.running = 0
        self.levels: dict[int, OrderedDict[Ticket, None]] = {}

    def push(self, ticket: Ticket, *, front: bool) -> None:
        level = self.levels.get(ticket.priority)
        if level is None:
            level = self.levels[ticket.priority] = OrderedDict()
        level[ticket] = None
        ticket.state = "waiting"
        if front:
            level.move_to_end(ticket, last=False)
        self.waiting += 1

    def head(self) -> Ticket:
        return next(iter(self.levels[max(self.levels)]))

    def tail(self) -> Ticket:
        return next(reversed(self.levels[min(self.levels)]))

    def remove(self, ticket: Ticket) -> None:
        level = self.levels[ticket.priority]
        del level[ticket]
        if not level:
            del self.levels[ticket.priority]
        self.waiting -= 1


@dataclass(frozen=True, slots=True)
class QueueState:
    """What a queue looks like from outside. ``counters`` are service units divided by weight."""

    waiting: int
    waiting_tokens: int
    waiting_by_tenant: dict[str, int]
    counters: dict[str, float]


class FairQueue:
    """Tickets of many tenants for one pool.

    ``place`` tries to put a ticket onto the pool: it takes the capacity and returns True, or changes nothing and
    returns False. ``now`` returns seconds of any monotonic clock.
    """

    def __init__(self, place: Callable[[Ticket], bool], now: Callable[[], float], max_waiting: int) -> None:
        self._place = place
        self._now = now
        self.max_waiting = max_waiting
        self._tenants: dict[str, _Tenant] = {}
        self._heap: list[tuple[float, int, _Tenant]] = []
        self._entries = 0
        self._last: _Tenant | None = None
        self.waiting = 0
        self._waiting_cost = 0
        self._released = 0.0
        self._released_at = now()

    def submit(self, ticket: Ticket, *, front: bool = False) -> bool:
        """Take a ticket in. Return True when it was dispatched at once, False when it waits (then a callback tells).

        ``front`` puts a ticket that is being retried before its tenant's others. Raises
        :class:`~routing.errors.QueueFullError`.
        """
        tenant = self._tenants.get(ticket.tenant)
        if tenant is None:
            tenant = self._tenants[ticket.tenant] = _Tenant(ticket.tenant, ticket.weight)
        tenant.weight = ticket.weight
        if not self.waiting and self._place(ticket):
            last = self._last
            if last is not None and last.counter > tenant.counter:
                tenant.counter = last.counter
            self._dispatched(tenant, ticket)
            return True
        self._make_room(tenant)
        if not tenant.waiting:
            self._lift(tenant)
        tenant.push(ticket, front=front)
        if tenant.waiting == 1:
            self._enter(tenant)
        self.waiting += 1
        self._waiting_cost += ticket.cost
        if self.waiting > 1:
            self.pump()
        return ticket.state == "running"

    def pump(self) -> None:
        """Dispatch while there is room. Call it when capacity came back or a replica did."""
        while (tenant := self._least()) is not None:
            ticket = tenant.head()
            if not self._place(ticket):
                return
            self._remove(tenant, ticket)
            self._dispatched(tenant, ticket)
            if ticket.on_ready is not None:
                ticket.on_ready()

    def cancel(self, ticket: Ticket) -> None:
        """Take a waiting ticket out at once; others that now come first are dispatched."""
        if ticket.state != "waiting":
            return
        self._remove(self._tenants[ticket.tenant], ticket)
        ticket.state = "done"
        self.pump()

    def progress(self, ticket: Ticket, output_tokens: int) -> None:
        """``output_tokens`` have streamed so far: charge what is beyond the prediction."""
        beyond = output_tokens - ticket.seen_output
        if beyond > 0 and ticket.state == "running":
            ticket.seen_output = output_tokens
            self._tenants[ticket.tenant].counter += W_OUTPUT * beyond / ticket.weight

    def finish(self, ticket: Ticket, input_tokens: int, output_tokens: int) -> None:
        """End a dispatched ticket whose capacity was given back: correct the charge to what was served, dispatch others.

        A call that reached no upstream has served 0 and 0 tokens. Idempotent.
        """
        if ticket.state != "running":
            return
        ticket.state = "done"
        tenant = self._tenants[ticket.tenant]
        tenant.running -= 1
        owed = W_INPUT * (input_tokens - ticket.input_tokens) + W_OUTPUT * (
            output_tokens - ticket.seen_output
        )
        if owed:
            tenant.counter += owed / ticket.weight
            if owed < 0 and tenant.waiting:
                self._enter(tenant)
        now = self._now()
        self._released = self._released * math.exp((self._released_at - now) / _RATE_WINDOW_S) + ticket.cost
        self._released_at = now
        if self.waiting:
            self.pump()
        elif not tenant.running:
            self._forget_idle(tenant)

    def retry_after_ms(self) -> int:
        """Estimate when a call refused now would find room: the waiting work over the recent rate of release."""
        rate = self._released * math.exp((self._released_at - self._now()) / _RATE_WINDOW_S) / _RATE_WINDOW_S
        if rate <= 0:
            return _MIN_RETRY_MS
        return min(max(round(1_000 * self._waiting_cost / rate), _MIN_RETRY_MS), _MAX_RETRY_MS)

    def state(self) -> QueueState:
        """Describe the queue: for the record, the metrics and the measurement of the gap."""
        return QueueState(
            waiting=self.waiting,
            waiting_tokens=self._waiting_cost,
            waiting_by_tenant={
                name: tenant.waiting for name, tenant in self._tenants.items() if tenant.waiting
            },
            counters={name: tenant.counter for name, tenant in self._tenants.items()},
        )

    def _lift(self, tenant: _Tenant) -> None:
        """On every idle-to-waiting edge: no saved-up service (the paper's algorithm 2, lines 6 to 11)."""
        if self.waiting:
            least = self._least()
            assert least is not None
            tenant.counter = max(tenant.counter, least.counter)
        elif self._last is not None:
            tenant.counter = max(tenant.counter, self._last.counter)

    def _dispatched(self, tenant: _Tenant, ticket: Ticket) -> None:
        ticket.state = "running"
        tenant.running += 1
        tenant.counter += (W_INPUT * ticket.input_tokens + W_OUTPUT * ticket.predicted) / ticket.weight
        self._last = tenant

    def _make_room(self, tenant: _Tenant) -> None:
        """Bound the waiting room: its newest ticket of the tenant that crowds it most goes, or the arriving one."""
        if self.waiting < self.max_waiting:
            return
        crowd = max(
            (other for other in self._tenants.values() if other.waiting),
            key=lambda other: other.waiting / other.weight,
            default=tenant,
        )
        retry_after = self.retry_after_ms()
        if crowd is tenant or crowd.waiting / crowd.weight <= (tenant.waiting + 1) / tenant.weight:
            if not tenant.waiting and not tenant.running:
                self._forget_idle(tenant)
            raise QueueFullError("The model's queue is full; try again later.", retry_after_ms=retry_after)
        victim = crowd.tail()
        self._remove(crowd, victim)
        victim.state = "done"
        if victim.on_evicted is not None:
            victim.on_evicted(retry_after)

    def _remove(self, tenant: _Tenant, ticket: Ticket) -> None:
        tenant.remove(ticket)
        self.waiting -= 1
        self._waiting_cost -= ticket.cost

    def _enter(self, tenant: _Tenant) -> None:
        """(Re)announce a waiting tenant with its counter; older entries of it become void."""
        self._entries += 1
        tenant.entry = self._entries
        heappush(self._heap, (tenant.counter, tenant.entry, tenant))
        if len(self._heap) > 64 + 4 * len(self._tenants):
            self._heap = [item for item in self._heap if item[1] == item[2].entry and item[2].waiting]
            heapify(self._heap)

    def _least(self) -> _Tenant | None:
        """Return the waiting tenant with the smallest counter. Entries whose counter grew are moved down on the way."""
        heap = self._heap
        while heap:
            counter, entry, tenant = heap[0]
            if entry != tenant.entry or not tenant.waiting:
                heappop(heap)
            elif counter < tenant.counter:
                heapreplace(heap, (tenant.counter, entry, tenant))
            else:
                return tenant
        return None

    def _forget_idle(self, tenant: _Tenant) -> None:
        """Drop an idle tenant whose counter the next lift would restore; bound the rest."""
        last = self._last
        if last is not tenant and last is not None and tenant.counter <= last.counter:
            self._tenants.pop(tenant.name, None)
        elif last is None or len(self._tenants) > _MAX_IDLE_TENANTS:
            idle = [
                one
                for one in self._tenants.values()
                if not one.waiting and not one.running and one is not last
            ]
            for one in sorted(idle, key=lambda one: one.counter)[: _MAX_IDLE_TENANTS // 4]:
                del self._tenants[one.name]
