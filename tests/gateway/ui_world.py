"""A control plane with the dashboard alone: real database, keys and record store, a writer of its own, made-up calls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from airi.database import open_engine
from airi.ids import new_span_id, new_trace_id
from airi.keys import NewKey
from airi.settings import Settings
from airi.storage import prepare
from gateway.control import http_errors, traces, ui
from gateway.control.services import Services, build
from observability.dayfile import DayFile, day_of
from observability.record import Attempt, CallContent, CallRecord, Decision, SpanRecord
from observability.store import RecordStore
from tests.observability.make import batch

SECOND = 1_000_000_000


@dataclass
class World:
    """What a test of the dashboard works with."""

    settings: Settings
    services: Services
    app: FastAPI
    keys: dict[str, str]
    """Role → key of tenant ``acme``; ``rival`` → a key of another tenant; ``admin``."""
    records: list[CallRecord] = field(default_factory=list)
    batches: int = 0

    def write(
        self, *records: CallRecord | SpanRecord, contents: list[tuple[int, CallContent]] | None = None
    ) -> None:
        """Put records into today's file."""
        self.batches += 1
        file = DayFile(self.settings.records, day_of(time.time_ns()))
        file.write([("ui-world", batch(self.batches, *records, contents=contents))])
        file.close()
        self.records += [record for record in records if isinstance(record, CallRecord)]


def make_world(home: Path, redis_url: str, run_service: Any = None) -> World:
    """Make the control plane's parts under ``home``."""
    settings = Settings.from_environment({"AIRI_HOME": str(home), "AIRI_REDIS_URL": redis_url})
    engine = open_engine(settings.effective_database_url, full_sync=True)
    prepare(engine)
    services = build(settings, engine, record_store=RecordStore(settings.records), run_service=run_service)
    made = services.key_log.create_many(
        [
            *(
                NewKey(tenant="acme", team="search", role=role, name=f"{role} key")
                for role in ("developer", "org_admin", "auditor", "service")
            ),
            NewKey(tenant="rival", role="org_admin", name="rival key"),
        ],
        actor="test",
    )
    keys = {record.role if record.tenant == "acme" else "rival": token.reveal() for record, token in made}
    app = FastAPI()
    http_errors.install(app)
    app.include_router(traces.router(services))
    app.include_router(ui.router(services))
    return World(settings, services, app, {**keys, "admin": services.admin_key.reveal()})


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app on a port of its own; yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the control plane did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def decided(**details: Any) -> list[Decision]:
    """The decisions of an ordinary call, in the gateway's form."""
    return [
        Decision("auth", 4, 9, "allowed", "API key", {"role": "developer", "key": "k_7c1", "team": "search"}),
        Decision(
            "limits", 20, 96, "allowed", "within every limit",
            {"scopes": ["org acme", "team search", "key k_7c1"], "hold_usd_micros": 1_240, "granted_output_tokens": 512,
             "requested_output_tokens": 4_096, "estimated_tokens": 310, "requests": {"limit": 600, "remaining": 541},
             "tokens": {"limit": 100_000, "remaining": 83_210}},
        ),
        Decision("policy", 130, 31, "allowed", "", {"shadows": [{"policy": "no-finance", "effect": "deny", "reason": "FINANCE"}]}),
        Decision(
            "route", 170, 14, "chosen", "",
            {"target": "sim/sim-1", "version": "fast@v2", "reason": "cached_prefix",
             "candidates": [
                 {"replica": "sim-1", "score": 412, "cached_tokens": 96, "in_flight_tokens": 380, "in_flight_calls": 2, "external_tokens": 0},
                 {"replica": "sim-0", "score": 655, "cached_tokens": 0, "in_flight_tokens": 510, "in_flight_calls": 3, "external_tokens": 20},
             ],
             "rejected": [{"replica": "sim-2", "reason": "breaker_open"}], "passed_over": [], **details},
        ),
        Decision(
            "price", 842_000, 12, "computed", "",
            {"input_tokens": 132, "cached_tokens": 96, "output_tokens": 214, "usage_source": "upstream", "source": "Model fast",
             "cost_usd_micros": 142, "input_usd_micros_per_million": 150_000, "cached_input_usd_micros_per_million": 75_000,
             "output_usd_micros_per_million": 600_000},
        ),
    ]  # fmt: skip


def good_call(**fields: Any) -> CallRecord:
    """A streamed call to the simulated pool that took a retry."""
    trace_id = fields.pop("trace_id", None) or new_trace_id()
    values: dict[str, Any] = {
        "trace_id": trace_id, "span_id": new_span_id(), "request_id": f"req_{trace_id}", "process": "gateway-0",
        "tenant": "acme", "team": "search", "key_id": "k_7c1", "session": "chat-42", "route": "/v1/chat/completions",
        "started_unix_ns": time.time_ns() - 2 * SECOND, "duration_us": 842_300, "ttft_us": 96_000, "status": 200,
        "model": "fast", "alias": "fast", "version": "fast@v2", "target": "sim/sim-1", "provider": "sim",
        "provider_model": "sim-small", "stream": True, "chunks": 214, "input_tokens": 132, "output_tokens": 214,
        "cached_tokens": 96, "usage_source": "upstream", "max_tokens": 512, "cost_usd_micros": 142, "price_source": "Model fast",
        "finish_reasons": ["stop"], "simulated": True, "snapshot": "9f2c44ab01d9e7f3", "reservation_id": f"{trace_id[:16]}r",
        "marks": {"auth": 13, "admit": 118, "policy": 165, "route": 188, "first_byte": 96_000, "last_byte": 841_900, "settle": 842_100, "end": 842_300},
        "attempts": [
            Attempt("sim/sim-0", 190, outcome="status", status=503, duration_us=21_000, wait_us=300, error="overloaded", simulated=True),
            Attempt("sim/sim-1", 21_400, status=200, duration_us=820_500, first_byte_us=74_600, wait_us=1_900, simulated=True),
        ],
        "decisions": decided(),
    }  # fmt: skip
    return CallRecord(**{**values, **fields})


def refused_call(**fields: Any) -> CallRecord:
    """A call that a policy refused."""
    values: dict[str, Any] = {
        "status": 403, "error_type": "permission_error", "error_code": "policy_denied", "policy_hit": "no-cards",
        "error_message": "Card numbers may not be sent to a model.", "duration_us": 420, "ttft_us": 0, "target": "", "version": "",
        "input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "cost_usd_micros": 0, "attempts": [], "simulated": False,
        "usage_source": "none", "stream": False, "finish_reasons": [], "detections": {"card": 1},
        "marks": {"auth": 12, "admit": 190, "policy": 380, "end": 420},
        "decisions": [*decided()[:2], Decision("policy", 200, 170, "denied", "CARD", {"policy": "no-cards", "effect": "deny", "message": "Card numbers may not be sent to a model.", "detections": {"card": 1}})],
    }  # fmt: skip
    return good_call(**{**values, **fields})
