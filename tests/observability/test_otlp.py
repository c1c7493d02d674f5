"""Export, against a receiver that decodes OTLP's protobuf as a collector does."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from airi.ids import new_span_id, new_trace_id
from observability import otlp
from observability.emitter import Emitter
from observability.exporter import _QUEUE_RECORDS, Exporter, open_exporter
from observability.record import Attempt, CallRecord, Decision, SpanLink, SpanRecord
from tests.observability.conftest import WriterProcess, until
from tests.observability.make import call, span


class Receiver(ThreadingHTTPServer):
    """An OTLP/HTTP endpoint on a port of its own; keeps (resource attributes, span) of all it was sent."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], Any]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def named(self, name: str) -> Any:
        """The only span of that name."""
        (found,) = [item for _, item in self.spans if item.name == name]
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.server.status == 200:
            request = ExportTraceServiceRequest.FromString(body)
            for group in request.resource_spans:
                resource = attributes(group.resource)
                for scope in group.scope_spans:
                    self.server.spans += [(resource, item) for item in scope.spans]
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


def attributes(holder: Any) -> dict[str, Any]:
    """Protobuf attributes as plain data."""
    plain = {}
    for pair in holder.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        plain[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return plain


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


def wide_call() -> CallRecord:
    return call(
        parent_span_id=new_span_id(),
        stream=True,
        session="s1",
        temperature=0.2,
        max_tokens=64,
        response_id="chatcmpl-1",
        cached_tokens=4,
        run_id="run_1",
        decisions=[Decision("route", 130, 12, "chosen", "least loaded", {"candidates": [{"target": "a"}]})],
        attempts=[
            Attempt("sim/sim-1", 150, outcome="retried", status=503, duration_us=900, error="upstream_503"),
            Attempt(
                "sim/sim-0",
                2_000,
                status=200,
                duration_us=9_000,
                span_id="00f067aa0ba902b7",
                server_address="127.0.0.1",
                server_port=8100,
            ),
        ],
    )


async def test_a_call_arrives_as_spans(
    receiver: Receiver, make_writer: Callable[..., WriterProcess], make_emitter: Callable[..., Emitter]
) -> None:
    writer = make_writer(
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test"
    )
    writer.start()
    emitter = make_emitter()
    record = wide_call()
    emitter.emit(record)
    await emitter.start()
    await until(lambda: len(receiver.spans) == 3)
    top = receiver.named("chat sim/small")
    first, second = receiver.named("attempt sim/sim-1"), receiver.named("attempt sim/sim-0")
    assert top.trace_id.hex() == first.trace_id.hex() == record.trace_id
    assert (top.span_id.hex(), top.parent_span_id.hex()) == (record.span_id, record.parent_span_id)
    assert first.parent_span_id == second.parent_span_id == top.span_id
    assert second.span_id.hex() == "00f067aa0ba902b7"
    assert top.start_time_unix_nano == record.started_unix_ns
    assert top.end_time_unix_nano - top.start_time_unix_nano == record.duration_us * 1_000
    assert (top.kind, first.kind) == (3, 3)  # SPAN_KIND_CLIENT
    assert first.status.code == 2  # STATUS_CODE_ERROR
    told = attributes(top)
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "sim",
        "gen_ai.conversation.id": "s1",
        "gen_ai.request.model": "sim/small",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.2,
        "gen_ai.request.max_tokens": 64,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "small",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.004,
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 30,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "server.address": "127.0.0.1",
        "server.port": 8100,
        "airi.tenant": "acme",
        "airi.run_id": "run_1",
        "airi.simulated": True,
    }.items() <= told.items()
    assert not any("usage" in key for key in attributes(first))
    (event,) = top.events
    assert (event.name, attributes(event)["airi.reason"]) == ("airi.decision", "least loaded")
    resource = receiver.spans[0][0]
    assert resource["service.name"] == "airi"
    assert resource["service.instance.id"] == "gateway-0"
    assert resource["deployment.environment.name"] == "test"
    await until(lambda: writer.get("/state").json()["otlp"]["exported"] == 3)


def test_run_spans_have_the_conventions_names_and_links() -> None:
    converter = otlp.Converter()
    before = SpanLink(new_trace_id(), new_span_id())
    records: list[SpanRecord] = [
        span(kind="workflow", name="research", links=[before]),
        span(kind="agent", name="digger", attempt=2),
        span(kind="tool", name="search", state="failed", error="ToolTimeout", tool_effect="idempotent"),
        span(kind="step", name="plan"),
    ]
    told = list(converter.all(records))
    assert [s.name for s in told] == [
        "invoke_workflow research",
        "invoke_agent digger",
        "execute_tool search",
        "step plan",
    ]
    assert f"{told[0].links[0].context.trace_id:032x}" == before.trace_id
    assert told[2].status.is_ok is False
    assert dict(told[2].attributes or {})["gen_ai.tool.name"] == "search"
    assert dict(told[1].attributes or {})["gen_ai.agent.name"] == "digger"


async def test_a_collector_that_refuses_is_counted_and_holds_nothing_up(
    receiver: Receiver, make_writer: Callable[..., WriterProcess], make_emitter: Callable[..., Emitter]
) -> None:
    receiver.status = 400
    writer = make_writer(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    writer.start()
    emitter = make_emitter()
    emitter.emit(call())
    await emitter.start()
    await until(lambda: emitter.held_bytes == 0)
    await until(lambda: writer.get("/state").json()["otlp"]["failed"] == 2)
    assert 'airi_otlp_spans_total{outcome="failed"} 2' in writer.get("/metrics").text


def test_the_queue_is_bounded_and_a_broken_record_is_alone() -> None:
    gate = threading.Event()
    sent: list[int] = []

    class Slow:
        def send(self, records: list[CallRecord | SpanRecord]) -> tuple[int, int]:
            gate.wait(10)
            sent.append(len(records))
            return len(records), 0

        def close(self) -> None:
            pass

    exporter = Exporter(Slow())
    one = call()
    exporter.offer([one] * (_QUEUE_RECORDS + 1_000), [])
    state = exporter.state()
    assert state["dropped"] >= 1_000 - 256
    gate.set()
    exporter.close()
    assert sum(sent) + exporter.state()["dropped"] == _QUEUE_RECORDS + 1_000


def test_nothing_is_imported_without_an_endpoint() -> None:
    assert open_exporter({}) is None
    assert open_exporter({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}) is None
