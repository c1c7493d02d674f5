"""The physics of an inference engine: continuous batching over a bounded KV memory.

The engine advances in steps. A step has a budget of tokens: first every running sequence gets its share (one token
to decode, or the next piece of its prompt), then waiting sequences are admitted first come, first served, while
batch, budget and KV blocks last. When a running sequence needs a block and none is free, the youngest running one
is preempted and computed anew later. The shape follows vLLM's scheduler (chunked prefill, recompute preemption);
a step lasts ``step_base + prompt tokens / prefill rate + decoding sequences * decode cost``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from routing.sim.blocks import BlockPool
from routing.sim.errors import SequenceTooLongError
from routing.sim.timeline import Timeline

# Real timers fire late; a step may begin this much in the past (seconds) so that rates hold on average.
_CATCH_UP_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How fast and how large an engine is. Times in seconds, sizes in tokens, sequences or blocks."""

    prefill_tokens_per_s: float = 20_000.0
    step_base_s: float = 0.004
    decode_s_per_sequence: float = 0.000_02
    step_tokens: int = 2048
    max_sequences: int = 128
    kv_blocks: int = 8192
    block_tokens: int = 16
    prefix_cache: bool = True
    jitter: float = 0.0

    def step_seconds(self, prefill_tokens: int, decoding: int) -> float:
        """Return how long a step with this work lasts, without jitter."""
        return (
            self.step_base_s
            + prefill_tokens / self.prefill_tokens_per_s
            + decoding * self.decode_s_per_sequence
        )

    def scaled(self, speed: float) -> EngineProfile:
        """Return the same engine, ``speed`` times as fast."""
        return EngineProfile(
            self.prefill_tokens_per_s * speed,
            self.step_base_s / speed,
            self.decode_s_per_sequence / speed,
            self.step_tokens,
            self.max_sequences,
            self.kv_blocks,
            self.block_tokens,
            self.prefix_cache,
            self.jitter,
        )


class Sequence:
    """One prompt and its answer. Times are the timeline's seconds, or ``None`` while they have not come.

    ``hashes`` are the chained hashes of the full blocks of prompt and answer, as far as they are known.
    ``on_token`` is called for each token of the answer, ``on_finish`` once after the last; neither after an abort.
    """

    __slots__ = (
        "_held",
        "_plain",
        "admitted_at",
        "arrived_at",
        "cached_tokens",
        "computed",
        "finished_at",
        "first_token_at",
        "generated",
        "hashes",
        "last_token_at",
        "on_finish",
        "on_token",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
    )

    def __init__(
        self,
        prompt_tokens: int,
        output_tokens: int,
        hashes: Items[int] = (),
        on_token: Callable[[Sequence], None] | None = None,
        on_finish: Callable[[Sequence], None] | None = None,
    ) -> None:
        self.prompt_tokens = max(prompt_tokens, 1)
        self.output_tokens = output_tokens
        self.hashes = hashes
        self.on_token = on_token
        self.on_finish = on_finish
        self.computed = 0
        self.generated = 0
        self.cached_tokens = 0
        self.preemptions = 0
        self.arrived_at: float | None = None
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.finished_at: float | None = None
        self._held: list[int] = []
        self._plain = 0

    @property
    def pending(self) -> int:
        """Tokens known but not in KV memory: the rest of the prompt, or the last decoded token."""
        return self.prompt_tokens + self.generated - self.computed


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start; tokens unless said otherwise."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    cache_queries: int = 0
    cache_hits: int = 0
    preemptions: int = 0
    finished_sequences: int = 0
    aborted_sequences: int = 0
    steps: int = 0


class Engine:
    """Continuous batching on a :class:`~routing.sim.timeline.Timeline`; idle engines schedule nothing."""

    def __init__(self, profile: EngineProfile, timeline: Timeline, seed: int = 0) -> None:
        self.profile = profile
        self.timeline = timeline
        self.blocks = BlockPool(profile.kv_blocks)
        self.counters = EngineCounters()
        self._random = random.Random(seed)  # noqa: S311  # jitter, not a secret
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, None] = {}
        self._work: list[tuple[Sequence, int]] = []
        self._stepping = False
        self._step_end = 0.0

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that sequences hold, 0 to 1."""
        return self.blocks.used / self.blocks.capacity

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises :class:`SequenceTooLongError` when it could never fit."""
        blocks = self._blocks_for(sequence.prompt_tokens + sequence.output_tokens)
        if blocks > self.blocks.capacity:
            raise SequenceTooLongError(
                blocks * self.profile.block_tokens, self.blocks.capacity * self.profile.block_tokens
            )
        sequence.arrived_at = self.timeline.monotonic()
        self._waiting.append(sequence)
        if not self._stepping:
            self._step_end = sequence.arrived_at
            self._begin_step()

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence wherever it is; its blocks are free at once. Unknown or finished ones are left alone."""
        if sequence in self._running:
            del self._running[sequence]
            self._release(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            return
        sequence.finished_at = self.timeline.monotonic()
        self.counters.aborted_sequences += 1

    # --- steps ------------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        self._work = work = self._plan()
        self._stepping = bool(work)
        if not work:
            return
        prefill = sum([tokens for sequence, tokens in work if sequence.pending > 1])
        decoding = sum([1 for sequence, _ in work if sequence.pending == 1])
        seconds = self.profile.step_seconds(prefill, decoding)
        if self.profile.jitter:
            seconds *= 1 + self.profile.jitter * (2 * self._random.random() - 1)
        # A step begins where the one before it ended: what a late timer took is made good, up to a bound.
        self._step_end = max(self._step_end, self.timeline.monotonic() - _CATCH_UP_SECONDS) + seconds
        self.counters.steps += 1
        self.timeline.schedule(self._step_end, self._finish_step)

    def _plan(self) -> list[tuple[Sequence, int]]:
        budget = self.profile.step_tokens
        work: list[tuple[Sequence, int]] = []
        preempted = False
        for sequence in list(self._running):
            if not budget:
                break
            if sequence not in self._running:
                continue
            tokens = min(sequence.pending, budget)
            while not self._reserve(sequence, tokens):
                preempted = True
                victim = next(reversed(self._running))
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                work.append((sequence, tokens))
                budget -= tokens
        if preempted:
            return work
        while budget and self._waiting and len(self._running) < self.profile.max_sequences:
            tokens = self._admit(self._waiting[0], budget)
            if not tokens:
                break
            work.append((self._waiting.popleft(), tokens))
            budget -= tokens
        return work

    def _finish_step(self) -> None:
        now = self.timeline.monotonic()
        done: list[Sequence] = []
        produced: list[Sequence] = []
        for sequence, tokens in self._work:
            if sequence not in self._running:
                continue
            if sequence.pending > 1 or not sequence.generated:
                self.counters.prompt_tokens += tokens
            sequence.computed += tokens
            self._name_blocks(sequence)
            if sequence.pending:
                continue
            if sequence.generated < sequence.output_tokens:
                self._produce(sequence, now)
                produced.append(sequence)
            if sequence.generated >= sequence.output_tokens:
                sequence.finished_at = now
                del self._running[sequence]
                self._release(sequence)
                self.counters.finished_sequences += 1
                done.append(sequence)
        # Callbacks come last: they may submit and abort, and must find the step's state whole.
        for sequence in produced:
            if sequence.on_token is not None and (
                sequence in self._running or sequence.generated >= sequence.output_tokens
            ):
                sequence.on_token(sequence)
        for sequence in done:
            if sequence.on_finish is not None:
                sequence.on_finish(sequence)
        self._begin_step()

    def _produce(self, sequence: Sequence, now: float) -> None:
        sequence.generated += 1
        sequence.last_token_at = now
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        self.counters.generated_tokens += 1

    # --- memory -----------------------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.profile.block_tokens)

    def _reserve(self, sequence: Sequence, tokens: int) -> bool:
        need = self._blocks_for(sequence.computed + tokens) - len(sequence._held) - sequence._plain
        if need > self.blocks.free:
            return False
        if need > 0:
            self.blocks.take(need)
            sequence._plain += need
        return True

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Take the head of the queue into the batch; return its tokens in this step, 0 when it must wait."""
        size = self.profile.block_tokens
        known = sequence.prompt_tokens + sequence.generated
        # At least one token is computed, since its result is the next token.
        hit = self.blocks.matching(sequence.hashes, (known - 1) // size) if self.profile.prefix_cache else 0
        tokens = min(known - hit * size, budget)
        # What is cached but unused counts as free until it is held.
        revived = self.blocks.free
        for value in sequence.hashes[:hit]:
            self.blocks.hold(value)
        sequence._held = list(sequence.hashes[:hit])
        sequence.computed = hit * size
        if not self._reserve(sequence, tokens):
            self._release(sequence)
            assert self.blocks.free == revived
            return 0
        if sequence.admitted_at is None:
            sequence.admitted_at = self.timeline.monotonic()
            sequence.cached_tokens = hit * size
            self.counters.cache_queries += sequence.prompt_tokens
            self.counters.cache_hits += hit * size
        self._running[sequence] = None
        return tokens

    def _name_blocks(self, sequence: Sequence) -> None:
        if not self.profile.prefix_cache:
            return
        held, hashes = sequence._held, sequence.hashes
        full = min(sequence.computed // self.profile.block_tokens, len(hashes))
        while len(held) < full:
            value = hashes[len(held)]
            self.blocks.name(value)
            held.append(value)
            sequence._plain -= 1

    def _preempt(self, sequence: Sequence) -> None:
        del self._running[sequence]
        self._release(sequence)
        sequence.preemptions += 1
        self.counters.preemptions += 1
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.blocks.drop(sequence._held, sequence._plain)
        sequence._held = []
        sequence._plain = 0
        sequence.computed = 0
