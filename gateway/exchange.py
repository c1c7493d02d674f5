"""The Exchange: one call from its first byte to its record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from airi.ids import new_span_id, new_trace_id

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


class Exchange:
    """Everything known about one call; mutable, slotted, seen by the gateway alone.

    Times are monotonic nanoseconds; ``marks`` and ``decisions`` become offsets from ``started_ns`` in the record.
    """

    __slots__ = (
        "admitted",
        "alias",
        "answer",
        "attempts",
        "body",
        "call",
        "chunks",
        "cost_usd_micros",
        "decisions",
        "detections",
        "error_code",
        "error_message",
        "error_type",
        "finish_reasons",
        "guard",
        "idempotency_key",
        "input_bound",
        "input_bytes",
        "input_estimate",
        "kept",
        "key",
        "marks",
        "max_tokens",
        "model",
        "operation",
        "parent_span_id",
        "plan",
        "policy_hit",
        "predicted_output",
        "price_source",
        "replayed",
        "reply_reference",
        "request",
        "request_id",
        "reservation_id",
        "route",
        "run",
        "session",
        "settled",
        "snapshot",
        "span_id",
        "started_ns",
        "started_unix_ns",
        "status",
        "stream",
        "stream_failed",
        "tags",
        "trace_flags",
        "trace_id",
        "translation",
        "ttft_us",
        "usage",
        "user",
    )

    def __init__(self, request: Request, operation: Operation, snapshot: Snapshot) -> None:
        self.request = request
        self.operation = operation
        self.snapshot = snapshot
        self.started_ns = time.monotonic_ns()
        self.started_unix_ns = time.time_ns()
        self.trace_id = new_trace_id()
        self.span_id = new_span_id()
        self.parent_span_id = ""
        self.trace_flags = 1
        self.request_id = "req_" + self.trace_id
        self.session = ""
        self.tags: list[str] = []
        # authenticate
        self.key: KeyRecord | None = None
        self.run: RunClaims | None = None
        # understand
        self.body: dict[str, Any] = {}
        self.model = ""
        self.alias = ""
        self.user = ""
        self.stream = False
        self.input_bytes = 0
        self.translation: Translation | None = None
        self.plan: Plan | None = None
        self.idempotency_key = ""
        # admit
        self.input_bound = 0
        self.input_estimate = 0
        self.predicted_output = 0
        self.max_tokens = 0
        self.reservation_id = ""
        self.admitted: Admitted | None = None
        self.settled = False
        self.replayed = False
        # policies
        self.policy_hit = ""
        self.detections: dict[str, int] = {}
        self.guard: ResponseGuard | None = None
        # forward
        self.stream_failed = False
        self.reply_reference = ""
        self.route: Route | None = None
        self.call: Call | None = None
        self.attempts: list[Attempt] = []
        self.answer: Answer | None = None
        self.usage: Usage | None = None
        self.ttft_us = 0
        self.chunks = 0
        self.finish_reasons: list[str] = []
        self.cost_usd_micros = 0
        self.price_source = ""
        # outcome
        self.status = 0
        self.error_type = ""
        self.error_code = ""
        self.error_message = ""
        self.kept: list[bytes] | None = None
        """The answer as it was sent, where it must be kept: for an idempotency key, or by the tenant's wish."""
        self.marks: list[tuple[str, int]] = []
        self.decisions: list[tuple[str, int, int, str, str, dict[str, Any]]] = []

    def mark(self, name: str) -> None:
        """Stamp the end of a stage."""
        self.marks.append((name, time.monotonic_ns()))

    def decide(self, stage: str, since_ns: int, outcome: str, reason: str, details: dict[str, Any]) -> None:
        """Write down a decision taken since ``since_ns``, with its reason and what it was based on."""
        self.decisions.append((stage, since_ns, time.monotonic_ns() - since_ns, outcome, reason, details))
