"""The Exchange: one call from its first byte to its record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from airi.ids import new_span_id, new_trace_id
from observability.record import Decision

if TYPE_CHECKING:
    from airi.http.server import Request
    from airi.keys import KeyRecord
    from airi.tokens import RunClaims
    from gateway.dialects.front import Translation
    from gateway.operations import Operation
    from gateway.plan import Plan
    from gateway.snapshot import Snapshot
    from gateway.usage import Usage
    from policies.admission import Admitted
    from policies.engine import ResponseGuard
    from routing.answer import Answer
    from routing.call import Attempt, Call
    from routing.registry import Route


class Exchange(msgspec.Struct, eq=False):
    """Everything known about one call; mutable, seen by the gateway alone. A Struct, because one is made for each call.

    ``started_ns`` is monotonic, in nanoseconds; ``marks`` and ``decisions`` hold offsets from it, in microseconds.
    """

    request: Request
    operation: Operation
    snapshot: Snapshot
    started_ns: int = msgspec.field(default_factory=time.monotonic_ns)
    started_unix_ns: int = msgspec.field(default_factory=time.time_ns)
    trace_id: str = msgspec.field(default_factory=new_trace_id)
    span_id: str = msgspec.field(default_factory=new_span_id)
    parent_span_id: str = ""
    trace_flags: int = 1
    request_id: str = ""
    session: str = ""
    tags: list[str] = []
    # authenticate
    key: KeyRecord | None = None
    run: RunClaims | None = None
    # understand
    body: dict[str, Any] = {}
    model: str = ""
    alias: str = ""
    user: str = ""
    stream: bool = False
    input_bytes: int = 0
    translation: Translation | None = None
    plan: Plan | None = None
    idempotency_key: str = ""
    # admit
    input_bound: int = 0
    input_estimate: int = 0
    predicted_output: int = 0
    max_tokens: int = 0
    reservation_id: str = ""
    admitted: Admitted | None = None
    settled: bool = False
    replayed: bool = False
    # policies
    policy_hit: str = ""
    detections: dict[str, int] = {}
    guard: ResponseGuard | None = None
    # forward
    stream_failed: bool = False
    reply_reference: str = ""
    route: Route | None = None
    call: Call | None = None
    attempts: list[Attempt] = []
    answer: Answer | None = None
    usage: Usage | None = None
    ttft_us: int = 0
    chunks: int = 0
    finish_reasons: list[str] = []
    cost_usd_micros: int = 0
    price_source: str = ""
    # outcome
    status: int = 0
    error_type: str = ""
    error_code: str = ""
    error_message: str = ""
    kept: list[bytes] | None = None
    """The answer as it was sent, where it must be kept: for an idempotency key, or by the tenant's wish."""
    marks: dict[str, int] = {}
    """Stage → when it ended, in the order in which they did."""
    decisions: list[Decision] = []

    def __post_init__(self) -> None:
        self.request_id = "req_" + self.trace_id

    def mark(self, name: str) -> None:
        """Stamp the end of a stage."""
        self.marks[name] = (time.monotonic_ns() - self.started_ns) // 1_000

    def decide(self, stage: str, since_ns: int, outcome: str, reason: str, details: dict[str, Any]) -> None:
        """Write down a decision taken since ``since_ns``, with its reason and what it was based on."""
        took = time.monotonic_ns() - since_ns
        at = since_ns - self.started_ns
        self.decisions.append(Decision(stage, at // 1_000, took // 1_000, outcome, reason, details))
