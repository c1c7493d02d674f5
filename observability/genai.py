"""How a record is told in OpenTelemetry's GenAI words: one table, versioned, because the conventions still move.

Source: open-telemetry/semantic-conventions-genai (status "Development"). What they have no word for stands under
``airi.``; so do sums over several calls, which a backend would otherwise count a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from observability.record import Attempt, CallRecord, SpanRecord

TABLE_VERSION = "2026-11"
"""Of this table. Exported as ``airi.genai.table`` on each resource, so that a backend's queries can tell."""

CallField = tuple[str, Callable[[CallRecord], Any]]

_CALL: tuple[CallField, ...] = (
    ("gen_ai.operation.name", lambda c: c.operation),
    ("gen_ai.provider.name", lambda c: c.provider),
    ("gen_ai.conversation.id", lambda c: c.session),
    ("gen_ai.request.model", lambda c: c.model),
    ("gen_ai.request.stream", lambda c: c.stream or None),
    ("gen_ai.request.temperature", lambda c: c.temperature),
    ("gen_ai.request.max_tokens", lambda c: c.max_tokens or None),
    ("gen_ai.response.id", lambda c: c.response_id),
    ("gen_ai.response.model", lambda c: c.provider_model),
    ("gen_ai.response.finish_reasons", lambda c: c.finish_reasons or None),
    ("gen_ai.response.time_to_first_chunk", lambda c: c.ttft_us / 1e6 if c.stream and c.ttft_us else None),
    ("gen_ai.usage.input_tokens", lambda c: c.input_tokens if c.usage_source != "none" else None),
    ("gen_ai.usage.output_tokens", lambda c: c.output_tokens if c.usage_source != "none" else None),
    ("gen_ai.usage.cache_read.input_tokens", lambda c: c.cached_tokens or None),
    ("gen_ai.usage.reasoning.output_tokens", lambda c: c.reasoning_tokens or None),
    # The host behind the door, as the conventions ask: of the attempt that answered.
    ("server.address", lambda c: c.attempts[-1].server_address if c.attempts else None),
    ("server.port", lambda c: (c.attempts[-1].server_port or None) if c.attempts else None),
    ("error.type", lambda c: (c.error_code or c.error_type or str(c.status)) if c.status >= 400 else None),
    ("http.response.status_code", lambda c: c.status),
    ("airi.tenant", lambda c: c.tenant),
    ("airi.team", lambda c: c.team),
    ("airi.key_id", lambda c: c.key_id),
    ("airi.user", lambda c: c.user),
    ("airi.tags", lambda c: c.tags or None),
    ("airi.request_id", lambda c: c.request_id),
    ("airi.model", lambda c: c.served_as or c.alias),
    ("airi.target", lambda c: c.target),
    ("airi.cost_usd", lambda c: c.cost_usd_micros / 1e6),
    ("airi.price_source", lambda c: c.price_source),
    ("airi.usage_source", lambda c: c.usage_source),
    ("airi.policy_hit", lambda c: c.policy_hit),
    ("airi.simulated", lambda c: c.simulated or None),
    ("airi.replayed", lambda c: c.replayed or None),
    ("airi.run_id", lambda c: c.run_id),
    ("airi.step", lambda c: c.step),
    ("airi.snapshot", lambda c: c.snapshot),
)

OPERATIONS: dict[str, str] = {
    "workflow": "invoke_workflow",
    "agent": "invoke_agent",
    "tool": "execute_tool",
    "step": "step",
}
"""Kind of a run's span → operation. ``step`` is AIRI's own: the conventions have no word for it."""

_NAMED: dict[str, str] = {
    "workflow": "gen_ai.workflow.name",
    "agent": "gen_ai.agent.name",
    "tool": "gen_ai.tool.name",
    "step": "airi.step",
}


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def call_name(call: CallRecord) -> str:
    """Return the span name of a call: ``{operation} {requested model}``."""
    return f"{call.operation} {call.model}".strip()


def call_attributes(call: CallRecord) -> dict[str, Any]:
    """Return a call's span attributes; what is not known is left out."""
    return _present({name: read(call) for name, read in _CALL})


def attempt_attributes(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt's attributes. No usage: the call's span has it, and backends add spans up."""
    return _present(
        {
            "server.address": attempt.server_address,
            "server.port": attempt.server_port or None,
            "http.response.status_code": attempt.status or None,
            "error.type": attempt.error,
            "airi.target": attempt.target,
            "airi.model": attempt.model,
            "airi.provider_model": attempt.provider_model,
            "airi.attempt.outcome": attempt.outcome,
            "airi.attempt.reason": attempt.reason,
            "airi.attempt.wait_us": attempt.wait_us or None,
            "airi.simulated": attempt.simulated or None,
        }
    )


def span_name(span: SpanRecord) -> str:
    """Return the span name of a piece of a run: ``execute_tool search``."""
    return f"{OPERATIONS.get(span.kind, span.kind)} {span.name}".strip()


def span_attributes(span: SpanRecord) -> dict[str, Any]:
    """Return the attributes of a piece of a run."""
    plain = {
        f"airi.{key}": value
        for key, value in span.details.items()
        if isinstance(value, str | int | float | bool)
    }
    return _present(
        {
            **plain,
            "gen_ai.operation.name": OPERATIONS.get(span.kind) if span.kind != "step" else None,
            _NAMED.get(span.kind, "airi.name"): span.name,
            "error.type": span.error,
            "airi.tenant": span.tenant,
            "airi.run_id": span.run_id,
            "airi.workflow": span.workflow,
            "airi.step": span.step or (span.name if span.kind == "step" else ""),
            "airi.attempt": span.attempt,
            "airi.state": span.state,
            "airi.tool_effect": span.tool_effect,
        }
    )
