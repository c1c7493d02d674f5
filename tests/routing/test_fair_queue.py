"""The fair queue: the paper's rules, the bounds, and invariants under random interleavings."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.errors import QueueFullError
from routing.fair_queue import W_OUTPUT, FairQueue, Ticket


class Room:
    """A pool with room for ``calls`` calls."""

    def __init__(self, calls: int, max_waiting: int = 1_000) -> None:
        self.free = calls
        self.now = 0.0
        self.order: list[str] = []
        self.queue = FairQueue(self.place, lambda: self.now, max_waiting)

    def place(self, ticket: Ticket) -> bool:
        if not self.free:
            return False
        self.free -= 1
        self.order.append(ticket.tenant)
        return True

    def finish(self, ticket: Ticket, output: int | None = None) -> None:
        if ticket.state == "running":
            self.free += 1
        self.queue.finish(ticket, ticket.input_tokens, ticket.predicted if output is None else output)


def ticket(tenant: str, tokens: int = 10, weight: float = 1.0, priority: int = 0) -> Ticket:
    return Ticket(tenant, weight, tokens, tokens, priority)


def test_a_pool_with_room_dispatches_at_once_and_charges() -> None:
    room = Room(2)
    one = ticket("a")
    assert room.queue.submit(one)
    assert room.queue.state().counters == {"a": 10 + W_OUTPUT * 10}
    room.queue.progress(one, 8)
    assert room.queue.state().counters["a"] == 30
    room.queue.progress(one, 15)
    assert room.queue.state().counters["a"] == 40
    room.finish(one, 15)
    assert room.queue.state().counters["a"] == 40


def test_what_was_predicted_and_not_served_is_given_back() -> None:
    room = Room(1)
    one = ticket("a")
    room.queue.submit(one)
    room.finish(one, 1)
    assert room.queue.state().counters["a"] == 12
    room.finish(one, 1)
    assert (room.queue.state().counters["a"], room.free) == (12, 1)


def test_the_tenant_with_less_service_goes_first() -> None:
    room = Room(1)
    running = ticket("a")
    room.queue.submit(running)
    waiting = [ticket("a"), ticket("a"), ticket("b"), ticket("b")]
    assert not any(room.queue.submit(one) for one in waiting)
    for done in [running, waiting[0], waiting[2], waiting[1]]:
        room.finish(done)
    assert room.order == ["a", "a", "b", "a", "b"] or room.order == ["a", "b", "a", "b", "a"]


def test_weights_share_a_full_pool() -> None:
    room = Room(1)
    first = ticket("a")
    room.queue.submit(first)
    everyone = {
        id(one): one
        for one in [ticket("a", weight=1.0) for _ in range(60)] + [ticket("b", weight=3.0) for _ in range(60)]
    }
    for one in everyone.values():
        room.queue.submit(one)
    current = first
    for _ in range(60):
        room.finish(current)
        current = next(one for one in everyone.values() if one.state == "running")
    served = room.order[1:61]
    assert 42 <= served.count("b") <= 48


def test_coming_back_from_idleness_saves_no_service() -> None:
    room = Room(1)
    running = ticket("a")
    room.queue.submit(running)
    busy = [ticket("a") for _ in range(50)]
    for one in busy:
        room.queue.submit(one)
    for one in [running, *busy[:40]]:
        room.finish(one)
    late = ticket("b")
    room.queue.submit(late)
    counters = room.queue.state().counters
    assert counters["b"] >= counters["a"] - 30


def test_an_idle_queue_lifts_to_the_last_that_left() -> None:
    room = Room(1)
    for _ in range(10):
        one = ticket("a")
        room.queue.submit(one)
        room.finish(one)
    other = ticket("b")
    room.queue.submit(other)
    assert room.queue.state().counters["b"] == 300 + 30


def test_cancelling_removes_at_once_and_wakes_the_next() -> None:
    room = Room(1)
    running, gone, stays = ticket("a"), ticket("b"), ticket("c")
    for one in (running, gone, stays):
        room.queue.submit(one)
    room.queue.cancel(gone)
    room.queue.cancel(gone)
    assert room.queue.waiting == 1
    room.finish(running)
    assert (gone.state, stays.state) == ("done", "running")


def test_a_retry_stands_before_its_tenants_others_and_priority_before_both() -> None:
    room = Room(1)
    running = ticket("a")
    room.queue.submit(running)
    plain, retried, urgent = ticket("a"), ticket("a"), ticket("a", priority=5)
    room.queue.submit(plain)
    room.queue.submit(retried, front=True)
    room.queue.submit(urgent)
    for done, started in ((running, urgent), (urgent, retried), (retried, plain)):
        room.finish(done)
        assert started.state == "running"


def test_the_waiting_room_is_bounded_and_shared() -> None:
    room = Room(1, max_waiting=4)
    room.queue.submit(ticket("a"))
    crowd = [ticket("a") for _ in range(4)]
    for one in crowd:
        room.queue.submit(one)
    with pytest.raises(QueueFullError) as caught:
        room.queue.submit(ticket("a"))
    assert caught.value.retry_after_ms is not None
    assert caught.value.retry_after_ms >= 1_000
    evicted: list[int] = []
    crowd[3].on_evicted = evicted.append
    room.queue.submit(ticket("b"))
    assert (len(evicted), crowd[3].state, room.queue.waiting) == (1, "done", 4)
    with pytest.raises(QueueFullError):
        Room(0, max_waiting=0).queue.submit(ticket("a"))


def test_retry_after_follows_the_rate_of_release() -> None:
    room = Room(1)
    for _ in range(20):
        room.now += 1.0
        one = ticket("a", tokens=50)
        room.queue.submit(one)
        room.finish(one)
    room.queue.submit(ticket("a", tokens=50))
    for _ in range(9):
        room.queue.submit(ticket("a", tokens=50))
    assert 5_000 <= room.queue.retry_after_ms() <= 15_000


def test_idle_tenants_are_forgotten() -> None:
    room = Room(1)
    for number in range(20_000):
        one = ticket(f"t{number}", tokens=random.Random(number).randint(1, 50))
        room.queue.submit(one)
        room.finish(one)
    assert len(room.queue.state().counters) <= 5_000


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["submit", "finish", "cancel", "progress"]), st.integers(0, 3), st.integers(1, 40)
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.integers(0, 4), st.integers(0, 6))
def test_nothing_is_lost_and_nothing_leaks(
    operations: list[tuple[str, int, int]], calls: int, max_waiting: int
) -> None:
    """Capacity, waiting count and states agree after every operation; whoever fits is never left waiting."""
    room = Room(calls, max_waiting)
    alive: list[Ticket] = []
    for what, who, size in operations:
        if what == "submit":
            one = ticket(f"t{who}", size, weight=1.0 + who, priority=who % 2)
            one.on_evicted = lambda _ms: None
            try:
                room.queue.submit(one)
            except QueueFullError:
                continue
            alive.append(one)
        elif alive:
            one = alive[size % len(alive)]
            if what == "finish":
                room.finish(one, size)
            elif what == "cancel":
                room.queue.cancel(one)
            else:
                room.queue.progress(one, size)
        running = sum(one.state == "running" for one in alive)
        waiting = sum(one.state == "waiting" for one in alive)
        assert running == calls - room.free
        assert waiting == room.queue.waiting <= max_waiting
        assert room.queue.state().waiting_tokens == sum(one.cost for one in alive if one.state == "waiting")
        assert not (room.free and waiting)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60)), min_size=30, max_size=200), st.integers(1, 5)
)
def test_counters_of_waiting_tenants_stay_close(work: list[tuple[int, int]], calls: int) -> None:
    """Lemma 4.3 of the paper for charges at dispatch: waiting tenants' counters differ by at most the largest charge."""
    room = Room(calls, 10_000)
    tickets = [ticket(f"t{who}", size) for who, size in work]
    largest = max(3 * size for _, size in work)
    for one in tickets:
        room.queue.submit(one)
    for _ in range(len(tickets)):
        state = room.queue.state()
        waiting = [state.counters[name] for name in state.waiting_by_tenant]
        if len(waiting) > 1:
            assert max(waiting) - min(waiting) <= largest
        running = [one for one in tickets if one.state == "running"]
        if not running:
            break
        room.finish(running[0])
