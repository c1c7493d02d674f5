"""Which replica serves a call: a pure function of the request's features and a snapshot of the replicas.

The score is the work, in tokens, that stands before the call's first token on a replica; the least is best:

    load * tokens in flight + prefill * (prompts not yet prefilled + this prompt - what the replica has cached)
      + external * tokens other gateways have there

(the terms are Dynamo's and llm-d's, see docs/routing.md). The same function runs in production and in the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class ReplicaSnapshot(msgspec.Struct, frozen=True, gc=False):
    """A replica as this process sees it at one moment. Tokens are prompt and (predicted) output tokens."""

    name: str
    bit: int
    refusing: str
    """Why it must not be used now (``down``, ``breaker_open``, …); empty when it may."""
    in_flight_tokens: int
    in_flight_calls: int
    pending_prefill: int
    external_tokens: int
    """Others' work there, from the engine's own metrics; fades out as the scrape grows old."""
    token_capacity: int
    call_capacity: int


class Features(msgspec.Struct, frozen=True, gc=False):
    """What of a request matters here. ``cached`` are tokens of its prompt that each replica holds (by replica bit)."""

    input_tokens: int
    cost: int
    cached: dict[int, int]
    tried: int = 0
    """Mask of the replicas that already failed this call."""
    turn: int = 0
    """Breaks ties: replicas with equal scores take turns."""


class Weights(msgspec.Struct, frozen=True, gc=False):
    """How much each part of the score counts, all in tokens."""

    load: float = 1.0
    prefill: float = 1.0
    external: float = 1.0


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A replica that could serve the call and what it would cost there."""

    index: int
    score: float
    cached_tokens: int


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A replica that was not considered, and why: ``down``, ``breaker_open``, ``already_tried``, ``full``."""

    index: int
    reason: str


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The replicas that can take the call now, best first, and the others with the reason each was left out."""

    ranked: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
    reason: str


DEFAULT_WEIGHTS = Weights()


def choose(
    features: Features,
    replicas: Sequence[ReplicaSnapshot],
    weights: Weights = DEFAULT_WEIGHTS,
) -> Choice:
    """Rank the replicas for a call.

    A replica is full when the call would exceed its token or call capacity; a call bigger than the capacity may still run
    alone. When every replica refuses (all stale or down) the health information is not believed: fail open.
    """
    rejected: list[Rejected] = []
    usable: list[int] = []
    tried: list[int] = []
    for index, replica in enumerate(replicas):
        if replica.refusing:
            rejected.append(Rejected(index, replica.refusing))
        elif features.tried & replica.bit:
            tried.append(index)
        else:
            usable.append(index)
    reason = "least_work"
    if usable:
        rejected.extend(Rejected(index, "already_tried") for index in tried)
    elif tried:
        usable, reason = tried, "only_tried_left"
    else:
        usable = [item.index for item in rejected if item.reason == "down"]
        rejected = [item for item in rejected if item.reason != "down"]
        reason = "fail_open"
    candidates: list[Candidate] = []
    count = len(replicas)
    for index in usable:
        replica = replicas[index]
        if _full(replica, features.cost):
            rejected.append(Rejected(index, "full"))
        else:
            candidates.append(_score(index, replica, features, weights))
    if len(candidates) > 1:
        turn = features.turn
        candidates.sort(key=lambda item: (item.score, (item.index - turn) % count))
        if reason == "least_work" and candidates[0].cached_tokens > candidates[1].cached_tokens:
            reason = "cached_prefix"
    return Choice(tuple(candidates), tuple(rejected), reason if candidates else "no_room")


def _full(replica: ReplicaSnapshot, cost: int) -> bool:
    if replica.in_flight_calls >= replica.call_capacity:
        return True
    return replica.in_flight_calls > 0 and replica.in_flight_tokens + cost > replica.token_capacity


def _score(index: int, replica: ReplicaSnapshot, features: Features, weights: Weights) -> Candidate:
    cached = features.cached.get(replica.bit, 0) if features.cached else 0
    score = (
        weights.load * replica.in_flight_tokens
        + weights.prefill * (replica.pending_prefill + features.input_tokens - cached)
        + weights.external * replica.external_tokens
    )
    return Candidate(index, score, cached)


def explain(choice: Choice, replicas: Sequence[ReplicaSnapshot]) -> dict[str, Any]:
    """Return a choice as plain data for the record: who was a candidate with what score, who was not and why."""
    return {
        "reason": choice.reason,
        "candidates": [
            {
                "replica": replicas[item.index].name,
                "score": round(item.score),
                "cached_tokens": item.cached_tokens,
                "in_flight_tokens": replicas[item.index].in_flight_tokens,
                "in_flight_calls": replicas[item.index].in_flight_calls,
                "external_tokens": replicas[item.index].external_tokens,
            }
            for item in choice.ranked
        ],
        "rejected": [
            {"replica": replicas[item.index].name, "reason": item.reason} for item in choice.rejected
        ],
    }
