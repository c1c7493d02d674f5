"""Records for tests."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from airi.ids import new_span_id, new_trace_id
from observability.record import Attempt, CallContent, CallRecord, Decision, SpanRecord
from observability.wire import Batch

encode = msgspec.msgpack.encode


def call(**fields: Any) -> CallRecord:
    """A plausible finished call; fields override."""
    trace_id = fields.pop("trace_id", None) or new_trace_id()
    values: dict[str, Any] = {
        "trace_id": trace_id,
        "span_id": new_span_id(),
        "request_id": f"req_{trace_id}",
        "process": "gateway-0",
        "tenant": "acme",
        "team": "search",
        "key_id": "k1",
        "started_unix_ns": time.time_ns(),
        "duration_us": 12_000,
        "ttft_us": 4_000,
        "status": 200,
        "route": "/v1/chat/completions",
        "model": "sim/small",
        "alias": "sim/small",
        "version": "v1",
        "target": "sim/sim-0",
        "provider": "sim",
        "provider_model": "small",
        "usage_source": "upstream",
        "input_tokens": 20,
        "output_tokens": 30,
        "cost_usd_micros": 25,
        "marks": {
            "auth": 10,
            "admit": 90,
            "policy": 120,
            "route": 150,
            "first_byte": 4_000,
            "last_byte": 11_900,
        },
        "decisions": [
            Decision("auth", 0, 8, "allowed", "key k1 of acme/search", {"role": "member"}),
            Decision("route", 130, 12, "chosen", "least loaded", {"candidates": []}),
        ],
        "attempts": [Attempt("sim/sim-0", 150, duration_us=11_700, first_byte_us=3_800, status=200)],
        "finish_reasons": ["stop"],
        "simulated": True,
    }
    return CallRecord(**{**values, **fields})


def span(**fields: Any) -> SpanRecord:
    """A plausible finished step of a run; fields override."""
    values: dict[str, Any] = {
        "trace_id": new_trace_id(),
        "span_id": new_span_id(),
        "tenant": "acme",
        "kind": "step",
        "name": "plan",
        "started_unix_ns": time.time_ns(),
        "duration_us": 50_000,
        "run_id": "run_1",
        "workflow": "research",
        "state": "succeeded",
        "process": "worker",
    }
    return SpanRecord(**{**values, **fields})


def batch(
    seq: int, *records: CallRecord | SpanRecord, contents: list[tuple[int, CallContent]] | None = None
) -> Batch:
    """A batch as the emitter makes it."""
    calls = [msgspec.Raw(encode(record)) for record in records if isinstance(record, CallRecord)]
    spans = [msgspec.Raw(encode(record)) for record in records if isinstance(record, SpanRecord)]
    return Batch(seq, calls, spans, contents or [])
