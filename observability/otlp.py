"""Records as OpenTelemetry spans, made afterwards. Imported only where an OTLP endpoint is configured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from observability import genai
from observability.record import Attempt, CallRecord, SpanRecord

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("airi", "0.1.0")
_FAILED_STATES = frozenset({"failed", "cancelled", "needs_review"})
_MOST_RESOURCES = 256


class Converter:
    """Turns records into spans; keeps one resource for each process that sent some."""

    def __init__(self) -> None:
        self._resources: dict[str, Resource] = {}

    def resource(self, process: str) -> Resource:
        """Return the resource of a process; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win."""
        found = self._resources.get(process)
        if found is None:
            own = Resource(
                {
                    "service.name": "airi",
                    "service.instance.id": process,
                    "airi.genai.table": genai.TABLE_VERSION,
                }
            )
            found = own.merge(OTELResourceDetector().detect())
            if len(self._resources) < _MOST_RESOURCES:
                self._resources[process] = found
        return found

    def call(self, call: CallRecord) -> Iterator[ReadableSpan]:
        """Yield the span of a call, with its decisions as events, and one span for each attempt."""
        context = _context(call.trace_id, call.span_id)
        resource = self.resource(call.process)
        yield ReadableSpan(
            name=genai.call_name(call),
            context=context,
            parent=_context(call.trace_id, call.parent_span_id) if call.parent_span_id else None,
            resource=resource,
            attributes=genai.call_attributes(call),
            events=_decisions(call),
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, call.error_message or None) if call.status >= 400 else Status(),
            start_time=call.started_unix_ns,
            end_time=call.started_unix_ns + call.duration_us * 1_000,
            instrumentation_scope=_SCOPE,
        )
        for index, attempt in enumerate(call.attempts):
            yield _attempt(call, index, attempt, context, resource)

    def span(self, span: SpanRecord) -> ReadableSpan:
        """Return the span of a piece of a run."""
        failed = span.state in _FAILED_STATES
        return ReadableSpan(
            name=genai.span_name(span),
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_span_id) if span.parent_span_id else None,
            resource=self.resource(span.process),
            attributes=genai.span_attributes(span),
            links=[Link(_context(link.trace_id, link.span_id)) for link in span.links],
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error or span.state) if failed else Status(),
            start_time=span.started_unix_ns,
            end_time=span.started_unix_ns + span.duration_us * 1_000,
            instrumentation_scope=_SCOPE,
        )

    def all(self, records: Iterable[CallRecord | SpanRecord]) -> Iterator[ReadableSpan]:
        """Yield the spans of records of both sorts."""
        for record in records:
            if isinstance(record, CallRecord):
                yield from self.call(record)
            else:
                yield self.span(record)


def attempt_span_id(call: CallRecord, index: int) -> str:
    """Return an attempt's span id: the one sent upstream as ``traceparent``, else one made of the call's."""
    given = call.attempts[index].span_id
    return given or hashlib.blake2b(f"{call.span_id}/{index}".encode(), digest_size=8).hexdigest()


def _attempt(
    call: CallRecord, index: int, attempt: Attempt, parent: SpanContext, resource: Resource
) -> ReadableSpan:
    start = call.started_unix_ns + attempt.at_us * 1_000
    return ReadableSpan(
        name=f"attempt {attempt.target}",
        context=_context(call.trace_id, attempt_span_id(call, index)),
        parent=parent,
        resource=resource,
        attributes=genai.attempt_attributes(attempt),
        kind=SpanKind.CLIENT,
        status=Status()
        if attempt.outcome == "ok"
        else Status(StatusCode.ERROR, attempt.error or attempt.outcome),
        start_time=start,
        end_time=start + attempt.duration_us * 1_000,
        instrumentation_scope=_SCOPE,
    )


def _decisions(call: CallRecord) -> list[Event]:
    events = []
    for decision in call.decisions:
        attributes: Mapping[str, Any] = {
            "airi.stage": decision.stage,
            "airi.outcome": decision.outcome,
            "airi.reason": decision.reason,
            "airi.took_us": decision.took_us,
            "airi.details": msgspec.json.encode(decision.details).decode(),
        }
        events.append(Event("airi.decision", attributes, call.started_unix_ns + decision.at_us * 1_000))
    return events


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)
