"""A plan: what is known of a call from its key and its model alone, worked out once and kept with the snapshot."""

from __future__ import annotations

from dataclasses import dataclass

from policies.engine import PolicySet
from policies.limits import Scopes
from routing.registry import Route

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How calls of one key to one model are served under one snapshot.

    ``input_price`` and ``output_price`` are the dearest any reachable target charges (fallbacks and policies'
    ``route_to`` included), in micro-dollars per million tokens; ``priced`` is false when one of them has no price.
    """

    alias: str
    route: Route
    reroutes: dict[str, Route]
    policies: PolicySet
    scopes: Scopes
    weight: float
    input_price: int
    output_price: int
    priced: bool
    max_output_tokens: int
    region: str
    keep_content: bool

    def input_cost(self, tokens: int) -> int:
        """Return the most that ``tokens`` of input can cost, in micro-dollars, rounded up."""
        return -(-tokens * self.input_price // _MILLION)
