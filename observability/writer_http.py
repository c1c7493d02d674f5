"""What the writer answers over its HTTP socket: live calls, its own state, and metrics. Loopback by file mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from airi.http.server import Request, Server, serve
from observability import exposition
from observability.metrics import write_processes

if TYPE_CHECKING:
    from observability.writer import Writer

_JSON = [(b"content-type", b"application/json")]
_MOST_LIVE = 500


class WriterHttp:
    """``GET /live[?tenant=…]``, ``/state``, ``/metrics``."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._server: Server | None = None

    async def start(self, socket: Path) -> None:
        """Listen on ``socket``, which must not exist."""
        self._server = await serve(self._answer, uds=socket)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.close()

    async def _answer(self, request: Request) -> None:
        if request.method != "GET":
            request.respond(405, _JSON, b'{"error":{"message":"only GET"}}')
        elif request.path == "/live":
            tenant = parse_qs(request.query.decode("latin-1")).get("tenant", [None])[0]
            request.respond(200, _JSON, msgspec.json.encode(self.live(tenant)))
        elif request.path == "/state":
            request.respond(200, _JSON, msgspec.json.encode(self.state()))
        elif request.path == "/metrics":
            accept = (request.header(b"accept") or b"").decode("latin-1")
            openmetrics = exposition.wants_openmetrics(accept)
            kind = exposition.OPENMETRICS if openmetrics else exposition.PLAIN
            request.respond(200, [(b"content-type", kind.encode())], self.metrics(openmetrics).encode())
        else:
            request.respond(404, _JSON, b'{"error":{"message":"no such path"}}')

    def live(self, tenant: str | None) -> dict[str, Any]:
        """Return the calls in flight, newest first."""
        calls = self._writer.live.calls(tenant, _MOST_LIVE)
        return {"data": [{"process": process, **msgspec.structs.asdict(call)} for process, call in calls]}

    def state(self) -> dict[str, Any]:
        """Return what the dashboard's footer shows: lag, losses by cause, faults, processes."""
        writer = self._writer
        exporter = writer.exporter
        return {
            "lag_seconds": writer.metrics.lag_seconds,
            "waiting_batches": writer.ingest.waiting,
            "written_records": writer.ingest.written_records,
            "duplicate_batches": writer.ingest.duplicate_batches,
            "dropped": self._dropped(),
            "fault": writer.ingest.fault,
            "otlp": None if exporter is None else exporter.state(),
            "processes": [
                {
                    "process": peer.hello.process,
                    "pid": peer.hello.pid,
                    "stale": stale,
                    "gauges": peer.pulse.gauges,
                }
                for peer, stale in writer.live.peers()
            ],
        }

    def _dropped(self) -> dict[str, int]:
        lost = {**self._writer.live.drops()}
        for cause, count in self._writer.ingest.lost.items():
            lost[cause] = lost.get(cause, 0) + count
        return {cause: count for cause, count in sorted(lost.items()) if count}

    def metrics(self, openmetrics: bool) -> str:
        """Return the page that Prometheus scrapes."""
        writer = self._writer
        page = exposition.Exposition(openmetrics)
        writer.metrics.write(page)
        ingest = writer.ingest
        page.counter("airi_records_written", "Records committed.", [({}, ingest.written_records)])
        page.counter(
            "airi_records_dropped",
            "Records lost, by cause.",
            [({"cause": cause}, count) for cause, count in self._dropped().items()],
        )
        page.counter(
            "airi_record_batches_repeated",
            "Batches sent again after a reconnect and known already.",
            [({}, ingest.duplicate_batches)],
        )
        page.gauge("airi_record_batches_waiting", "Batches read and not committed.", [("", ingest.waiting)])
        page.gauge(
            "airi_record_store_fault", "1 while records cannot be written.", [("", bool(ingest.fault))]
        )
        if writer.exporter is not None:
            state = writer.exporter.state()
            page.counter(
                "airi_otlp_spans",
                "Spans handed to OTLP, by outcome.",
                [({"outcome": name}, state[name]) for name in ("exported", "failed", "dropped")],
            )
        write_processes(page, writer.live, ("writer", writer.gauges.pid, writer.gauges.collect()))
        return page.text()
