"""Which replica serves a call: a pure function of the request's features and a snapshot of the replicas.

The score is the work, in tokens, that stands before the call's first token on a replica; the least is best:

    load * tokens in flight + prefill * (prompts not yet prefilled + this prompt - what the replica has cached)
      + external * tokens other gateways have there

(the terms are Dynamo's and llm-d's, see docs/routing.md). The same function runs in production and in the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Candidate(NamedTuple):
    """A replica that could serve the call and what it would cost there. Sorts best first."""

    score: float
    turn: int
    position: int
    cached_tokens: int


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A replica that was not considered, and why: ``down``, ``breaker_open``, ``already_tried``, ``full``."""

    position: int
    reason: str


class Choice(msgspec.Struct, frozen=True):
    """The replicas that can take the call now, best first, and the others with the reason each was left out."""

    ranked: Sequence[Candidate]
    rejected: Sequence[Rejected]
    reason: str


DEFAULT_WEIGHTS = Weights()
_DOUBTED = ("down", "cooling")
"""Reasons that are opinions; an open breaker is a fact of this process's own."""


def choose(
    features: Features,
    replicas: Sequence[ReplicaSnapshot],
    weights: Weights = DEFAULT_WEIGHTS,
) -> Choice:
    """Rank the replicas for a call.

    A replica is full when the call would exceed its token or call capacity; a call bigger than the capacity may still run
    alone. When every replica refuses (all down) the health information is not believed: fail open.
    """
    rejected: list[Rejected] = []
    candidates: list[Candidate] = []
    tried, reason = features.tried, "least_work"
    for position, replica in enumerate(replicas):
        if replica.refusing:
            rejected.append(Rejected(position, replica.refusing))
        elif tried & replica.bit:
            rejected.append(Rejected(position, "already_tried"))
        else:
            _consider(position, replica, features, weights, len(replicas), candidates, rejected)
    if len(rejected) == len(replicas) and not any(item.reason == "full" for item in rejected):
        reason = _second_best(features, replicas, weights, candidates, rejected)
    if len(candidates) > 1:
        candidates.sort()
        if reason == "least_work" and candidates[0].cached_tokens > candidates[1].cached_tokens:
            reason = "cached_prefix"
    return Choice(candidates, rejected, reason if candidates else "no_room")


def _second_best(
    features: Features,
    replicas: Sequence[ReplicaSnapshot],
    weights: Weights,
    candidates: list[Candidate],
    rejected: list[Rejected],
) -> str:
    """Nobody is left: those that failed this call may try again, else the health information is not believed."""
    wanted: tuple[str, ...] = ("already_tried",)
    reason = "only_tried_left"
    if not any(item.reason == "already_tried" for item in rejected):
        wanted, reason = _DOUBTED, "fail_open"
    again = [item.position for item in rejected if item.reason in wanted]
    rejected[:] = [item for item in rejected if item.reason not in wanted]
    for position in again:
        _consider(position, replicas[position], features, weights, len(replicas), candidates, rejected)
    return reason


def _consider(
    position: int,
    replica: ReplicaSnapshot,
    features: Features,
    weights: Weights,
    count: int,
    candidates: list[Candidate],
    rejected: list[Rejected],
) -> None:
    """Score a replica, or reject it as full."""
    if _full(replica, features.cost):
        rejected.append(Rejected(position, "full"))
        return
    held = features.cached.get(replica.bit, 0) if features.cached else 0
    score = (
        weights.load * replica.in_flight_tokens
        + weights.prefill * (replica.pending_prefill + features.input_tokens - held)
        + weights.external * replica.external_tokens
    )
    candidates.append(Candidate(score, (position - features.turn) % count, position, held))


def _full(replica: ReplicaSnapshot, cost: int) -> bool:
    if replica.in_flight_calls >= replica.call_capacity:
        return True
    return replica.in_flight_calls > 0 and replica.in_flight_tokens + cost > replica.token_capacity


def explain(choice: Choice, replicas: Sequence[ReplicaSnapshot]) -> dict[str, Any]:
    """Return a choice as plain data for the record: who was a candidate with what score, who was not and why."""
    return {
        "reason": choice.reason,
        "candidates": [
            {
                "replica": replicas[item.position].name,
                "score": round(item.score),
                "cached_tokens": item.cached_tokens,
                "in_flight_tokens": replicas[item.position].in_flight_tokens,
                "in_flight_calls": replicas[item.position].in_flight_calls,
                "external_tokens": replicas[item.position].external_tokens,
            }
            for item in choice.ranked
        ],
        "rejected": [
            {"replica": replicas[item.position].name, "reason": item.reason} for item in choice.rejected
        ],
    }
