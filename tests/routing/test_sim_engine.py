"""The physics in virtual time: batching, memory, prefix cache, preemption, repeatability."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.sim.blocks import BlockPool
from routing.sim.engine import Engine, EngineProfile, Sequence
from routing.sim.errors import SequenceTooLongError
from routing.sim.timeline import VirtualTime

PLAIN = EngineProfile(
    prefill_tokens_per_s=1000, step_base_s=0.01, decode_s_per_sequence=0, step_tokens=512, kv_blocks=1000
)


def engine_of(**changes: Any) -> tuple[Engine, VirtualTime]:
    fields = {name: getattr(PLAIN, name) for name in PLAIN.__slots__} | changes
    timeline = VirtualTime()
    return Engine(EngineProfile(**fields), timeline), timeline


def test_one_sequence_takes_its_prefill_and_its_steps() -> None:
    engine, timeline = engine_of()
    tokens: list[float] = []
    sequence = Sequence(100, 5, on_token=lambda s: tokens.append(timeline.monotonic()))
    engine.submit(sequence)
    timeline.run()
    assert sequence.first_token_at == pytest.approx(0.01 + 100 / 1000)
    assert tokens == pytest.approx([0.11, 0.12, 0.13, 0.14, 0.15])
    assert sequence.finished_at == pytest.approx(0.15)
    assert engine.blocks.used == 0
    assert (engine.running, engine.waiting) == (0, 0)


def test_an_idle_engine_starts_from_the_present() -> None:
    engine, timeline = engine_of()
    for at in (5.0, 9.0):
        sequence = Sequence(100, 1)
        timeline.schedule(at, lambda sequence=sequence: engine.submit(sequence))  # type: ignore[misc]
        timeline.run()
        assert sequence.first_token_at == pytest.approx(at + 0.11)


def test_long_prompts_are_read_in_pieces_beside_decoding() -> None:
    engine, timeline = engine_of()
    short = Sequence(10, 50)
    engine.submit(short)
    timeline.run_until(0.1)
    long = Sequence(2000, 1)
    engine.submit(long)
    timeline.run_until(2.0)
    before = short.generated
    timeline.run()
    assert before > 3, "decoding went on while the prompt was read"
    assert long.first_token_at is not None
    assert long.first_token_at > 2000 / 1000


def test_batching_shares_steps() -> None:
    def total(count: int) -> float:
        engine, timeline = engine_of(decode_s_per_sequence=0.0001)
        for _ in range(count):
            engine.submit(Sequence(1, 100))
        timeline.run()
        return timeline.monotonic()

    assert total(32) < 2 * total(1)


def test_no_prompt_output_zero_is_prefill_alone() -> None:
    engine, timeline = engine_of()
    finished: list[Sequence] = []
    engine.submit(Sequence(64, 0, on_finish=finished.append))
    timeline.run()
    assert finished[0].generated == 0
    assert engine.counters.generated_tokens == 0


def test_prefixes_are_found_again_and_kept_apart() -> None:
    engine, timeline = engine_of()
    first = Sequence(64, 1, [1, 2, 3, 4])
    engine.submit(first)
    timeline.run()
    same, other, whole = (
        Sequence(80, 1, [1, 2, 3, 4, 9]),
        Sequence(64, 1, [1, 7, 3, 4]),
        Sequence(64, 1, [1, 2, 3, 4]),
    )
    for sequence in (same, other, whole):
        engine.submit(sequence)
        timeline.run()
    assert first.cached_tokens == 0
    assert same.cached_tokens == 64
    assert other.cached_tokens == 16, "a chain ends where it differs"
    assert whole.cached_tokens == 48, "the last token is always computed"
    assert engine.counters.cache_queries == 64 + 80 + 64 + 64
    assert engine.counters.cache_hits == 64 + 16 + 48
    assert engine.blocks.cached > 0


def test_least_recent_prefixes_go_first() -> None:
    engine, timeline = engine_of(kv_blocks=8)
    for name in (1, 2, 3):
        engine.submit(Sequence(48, 1, [name * 10, name * 10 + 1, name * 10 + 2]))
        timeline.run()
    kept = Sequence(49, 1, [30, 31, 32])
    lost = Sequence(49, 1, [10, 11, 12])
    for sequence in (kept, lost):
        engine.submit(sequence)
        timeline.run()
    assert kept.cached_tokens == 48
    assert lost.cached_tokens < 48


def test_full_memory_queues_then_preempts_the_youngest() -> None:
    engine, timeline = engine_of(kv_blocks=10)
    old, young = Sequence(64, 60), Sequence(64, 60)
    engine.submit(old)
    engine.submit(young)
    timeline.run()
    assert old.preemptions == 0
    assert young.preemptions >= 1
    assert engine.counters.preemptions == young.preemptions
    assert (old.generated, young.generated) == (60, 60)
    assert old.finished_at is not None
    assert young.finished_at is not None
    assert old.finished_at < young.finished_at
    assert engine.blocks.used == 0


def test_what_can_never_fit_is_refused() -> None:
    engine, _ = engine_of(kv_blocks=4)
    with pytest.raises(SequenceTooLongError):
        engine.submit(Sequence(60, 5))
    assert engine.waiting == 0


def test_first_come_first_served() -> None:
    engine, timeline = engine_of(max_sequences=1)
    order: list[int] = []
    for index in range(4):
        engine.submit(Sequence(5, 2, on_finish=lambda s, index=index: order.append(index)))  # type: ignore[misc]
    assert (engine.running, engine.waiting) == (1, 3)
    timeline.run()
    assert order == [0, 1, 2, 3]


def test_abort_frees_at_once_wherever_it_is() -> None:
    engine, timeline = engine_of(max_sequences=1)
    events: list[str] = []
    running = Sequence(
        32, 100, on_token=lambda s: events.append("token"), on_finish=lambda s: events.append("end")
    )
    waiting = Sequence(32, 100)
    engine.submit(running)
    engine.submit(waiting)
    timeline.run_until(0.1)
    engine.abort(waiting)
    assert engine.waiting == 0
    engine.abort(running)
    assert (engine.running, engine.blocks.used) == (0, 0)
    seen = len(events)
    timeline.run()
    assert len(events) == seen
    assert "end" not in events
    engine.abort(running)
    assert engine.counters.aborted_sequences == 2


def test_callbacks_may_submit_and_abort() -> None:
    engine, timeline = engine_of()
    children: list[Sequence] = []
    victim = Sequence(5, 1000)

    def on_token(sequence: Sequence) -> None:
        if sequence.generated == 3:
            engine.abort(victim)
            children.append(Sequence(5, 2))
            engine.submit(children[0])

    engine.submit(Sequence(5, 4, on_token=on_token))
    engine.submit(victim)
    timeline.run()
    assert children[0].finished_at is not None
    assert victim.generated < 1000


def run_workload(seed: int, jitter: float) -> list[tuple[Any, ...]]:
    timeline = VirtualTime()
    engine = Engine(EngineProfile(kv_blocks=300, max_sequences=16, jitter=jitter), timeline, seed)
    chance = random.Random(seed)
    sequences: list[Sequence] = []
    for _ in range(200):
        group, tail = chance.randrange(5), chance.randrange(1 << 30)
        hashes = [group * 100 + i for i in range(10)] + [tail * 1000 + i for i in range(40)]
        sequence = Sequence(chance.randrange(1, 600), chance.randrange(0, 120), hashes)
        sequences.append(sequence)
        timeline.schedule(chance.uniform(0, 20), lambda sequence=sequence: engine.submit(sequence))  # type: ignore[misc]
        if chance.random() < 0.1:
            timeline.schedule(chance.uniform(0, 25), lambda sequence=sequence: engine.abort(sequence))  # type: ignore[misc]
    timeline.run()
    assert engine.blocks.used == 0
    assert engine.blocks.cached <= 300
    return [(s.generated, s.cached_tokens, s.first_token_at, s.finished_at, s.preemptions) for s in sequences]


@pytest.mark.parametrize("jitter", [0.0, 0.2])
def test_a_seed_gives_one_history(jitter: float) -> None:
    first = run_workload(7, jitter)
    assert first == run_workload(7, jitter)
    assert any(row[1] for row in first), "some prefixes were found"
    assert (first != run_workload(8, jitter)) or not jitter


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_memory_is_never_overbooked(data: Any) -> None:
    timeline = VirtualTime()
    capacity = data.draw(st.integers(4, 40))
    engine = Engine(EngineProfile(kv_blocks=capacity, max_sequences=8, step_tokens=64), timeline)
    sequences = []
    for _ in range(data.draw(st.integers(1, 12))):
        prompt, output = data.draw(st.integers(1, 200)), data.draw(st.integers(0, 100))
        if -(-(prompt + output) // 16) > capacity:
            continue
        group = data.draw(st.integers(0, 2))
        sequence = Sequence(prompt, output, [group * 1000 + i for i in range((prompt + output) // 16)])
        sequences.append(sequence)
        timeline.schedule(data.draw(st.floats(0, 1)), lambda sequence=sequence: engine.submit(sequence))  # type: ignore[misc]
    for step in range(200):
        timeline.run_until(step * 0.01)
        assert 0 <= engine.blocks.used <= capacity
        assert engine.blocks.used + engine.blocks.cached <= capacity
    timeline.run()
    assert engine.blocks.used == 0
    assert all(s.generated == s.output_tokens for s in sequences)


def test_pool_shares_blocks() -> None:
    pool = BlockPool(4)
    pool.take(2)
    pool.name(11)
    pool.name(12)
    pool.hold(11)
    assert (pool.used, pool.free) == (2, 2)
    pool.drop([11, 12], 0)
    assert (pool.used, pool.cached) == (1, 1)
    assert pool.matching([11, 12, 13], 3) == 2
    pool.clear_cache()
    assert pool.matching([11, 12], 2) == 1


def test_virtual_time_keeps_order_and_goes_on_from_within() -> None:
    timeline = VirtualTime()
    seen: list[tuple[str, float]] = []

    def at(name: str) -> Any:
        return lambda: seen.append((name, timeline.monotonic()))

    timeline.schedule(2.0, at("b"))
    timeline.schedule(1.0, at("a"))
    timeline.schedule(2.0, at("c"))
    timeline.schedule(1.5, lambda: timeline.schedule(0.0, at("late")))
    timeline.run_until(1.9)
    assert seen == [("a", 1.0), ("late", 1.5)]
    assert timeline.monotonic() == 1.9
    timeline.run_until(2.0)
    assert [name for name, _ in seen] == ["a", "late", "b", "c"]
