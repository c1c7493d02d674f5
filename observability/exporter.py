"""Export in a thread of its own: a bounded queue in, OTLP over HTTP out. Ingest never waits for a collector."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from observability.record import CallRecord, SpanRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_log = logging.getLogger("observability.exporter")
_QUEUE_RECORDS = 20_000
_BATCH_RECORDS = 256
_CLOSE_S = 5.0


class SpanSink(Protocol):
    """Takes a batch of records to a backend; returns how many spans arrived and how many did not."""

    def send(self, records: list[CallRecord | SpanRecord]) -> tuple[int, int]:
        """Send, blocking; must not raise for a backend that is away."""

    def close(self) -> None:
        """Release connections."""


class Exporter:
    """A queue before a :class:`SpanSink`. ``offer`` never blocks; what does not fit is counted."""

    def __init__(self, sink: SpanSink) -> None:
        self._sink = sink
        self._queue: deque[CallRecord | SpanRecord] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._exported = 0
        self._failed = 0
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def offer(self, calls: Iterable[CallRecord], spans: Iterable[SpanRecord]) -> None:
        """Queue records for export."""
        with self._wake:
            records: list[CallRecord | SpanRecord] = [*calls, *spans]
            for record in records:
                if len(self._queue) >= _QUEUE_RECORDS:
                    self._dropped += 1
                else:
                    self._queue.append(record)
            self._wake.notify()

    def state(self) -> dict[str, int]:
        """Return spans ``exported`` and ``failed``, records ``dropped`` and ``waiting``."""
        return {
            "exported": self._exported,
            "failed": self._failed,
            "dropped": self._dropped,
            "waiting": len(self._queue),
        }

    def close(self) -> None:
        """Send what is queued, for at most five seconds, and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(_CLOSE_S)
        self._sink.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closing:
                    self._wake.wait()
                if not self._queue:
                    return
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_RECORDS))]
            try:
                exported, failed = self._sink.send(batch)
            except Exception:  # noqa: BLE001  # whatever a backend's library raises must end nothing: it is counted
                _log.exception("export failed")
                exported, failed = 0, len(batch)
            self._exported += exported
            self._failed += failed


class OtlpSink:
    """OTLP over HTTP with protobuf; address, headers and time-outs come from OpenTelemetry's own variables."""

    def __init__(self) -> None:
        # Imported here: a second of start and 40 MB that only those who export should pay.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult

        from observability.otlp import Converter

        self._success = SpanExportResult.SUCCESS
        self._exporter = OTLPSpanExporter()
        self._converter = Converter()

    def send(self, records: list[CallRecord | SpanRecord]) -> tuple[int, int]:
        """Send the spans of these records in one request."""
        spans: list[ReadableSpan] = []
        refused = 0
        for record in records:
            try:
                spans += self._converter.all([record])
            except (ValueError, TypeError) as error:  # an id that is not hex came from outside; others go on
                _log.warning("a record cannot be told as spans: %s", error)
                refused += 1
        if not spans:
            return 0, refused
        if self._exporter.export(spans) is self._success:
            return len(spans), refused
        return 0, refused + len(spans)

    def close(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def open_exporter(environment: Mapping[str, str]) -> Exporter | None:
    """Return an exporter when ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``) is set, else ``None``."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    ):
        return Exporter(OtlpSink())
    return None
