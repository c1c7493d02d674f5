"""The models that a replica serves, and the engine behind each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from routing.sim.engine import Engine, EngineProfile, Sequence
from routing.sim.errors import SequenceTooLongError
from routing.sim.metrics import ModelMetrics
from routing.sim.timeline import LoopTime
from routing.sim.tokens import Prompt

_MAX_CONTEXT_TOKENS = 32_768

SMALL = EngineProfile(prefill_tokens_per_s=20_000, step_base_s=0.004)
LARGE = EngineProfile(
    prefill_tokens_per_s=8_000,
    step_base_s=0.0065,
    decode_s_per_sequence=0.000_05,
    max_sequences=64,
    kv_blocks=4096,
)
EMBED = EngineProfile(prefill_tokens_per_s=100_000, step_base_s=0.001, step_tokens=8192)


@dataclass(slots=True)
class Model:
    """One served model and its engine."""

    name: str
    engine: Engine
    metrics: ModelMetrics
    context_tokens: int
    embeds: bool


def build(name: str, speed: float, seed: int, kv_blocks: int) -> Model:
    """Return a model with a profile after its name; ``kv_blocks`` 0 keeps the profile's own."""
    embeds = "embed" in name
    profile = (EMBED if embeds else LARGE if "large" in name else SMALL).scaled(speed)
    if kv_blocks:
        profile = replace(profile, kv_blocks=kv_blocks)
    engine = Engine(profile, LoopTime(asyncio.get_running_loop()), seed)
    context = min(_MAX_CONTEXT_TOKENS, profile.kv_blocks * profile.block_tokens)
    return Model(name, engine, ModelMetrics(name, engine), context, embeds)


async def prefill(model: Model, prompts: list[Prompt]) -> None:
    """Let the engine read texts; being cancelled takes them out of it."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = len(prompts)

    def finished(sequence: Sequence) -> None:
        nonlocal left
        left -= 1
        model.metrics.finished(sequence, "stop")
        if not left and not done.done():
            done.set_result(None)

    sequences = [Sequence(p.tokens, 0, p.hashes, on_finish=finished) for p in prompts]
    for prompt in prompts:
        if prompt.tokens > model.context_tokens:
            raise SequenceTooLongError(prompt.tokens, model.context_tokens)
    try:
        for sequence in sequences:
            model.engine.submit(sequence)
        await done
    finally:
        for sequence in sequences:
            model.engine.abort(sequence)
