"""A gateway process: ``python -m gateway.process``. One event loop, one Redis connection, no framework."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time

from sqlalchemy import Engine

from airi.config.secrets import SecretResolver
from airi.config.store import ConfigStore
from airi.content import ContentStore
from airi.database import migrate, open_engine
from airi.errors import AiriError
from airi.http.client import ClientOptions, HttpPool
from airi.http.server import Server, ServerLimits, serve
from airi.http.tls import server_context
from airi.identity import Identities
from airi.keyring import KeyRing
from airi.keys import KeyLog
from airi.logs import configure
from airi.redis_pipeline import PipelinedRedis
from airi.settings import Settings
from airi.storage import prepare
from airi.stored_responses import ResponseStore
from airi.up.ready import notify_ready
from gateway.app import DataPlane, transport_error
from gateway.exchange import Exchange
from gateway.proxy import ControlProxy
from gateway.runtime import Runtime
from gateway.snapshot import Snapshot
from gateway.watcher import Watcher
from observability.emitter import Emitter
from observability.record import LiveCall
from policies.admission import SCRIPTS, Admission, AdmissionOptions
from policies.migrations import MIGRATIONS
from policies.processes import process_name, register_process, unregister_process
from routing.router import Router

DRAIN_S = 30.0
_DRAIN_POLL_S = 0.02
# Calls leave few cycles; with the default thresholds looking for them costs a call 4 % of its time.
_GC_THRESHOLDS = (25_000, 20, 50)
_REST_S = 2.0
_GROWN = 1.25
SWITCH_S = 0.0005


class GatewayProcess:
    """Builds, runs and drains one process."""

    def __init__(self, settings: Settings, index: int) -> None:
        self._settings = settings
        self._name = f"gateway-{index}"
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain: running calls get 30 s, new ones 503."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        runtime = await self._build()
        app = DataPlane(runtime)
        settings = self._settings
        tls = (
            server_context(settings.tls_certificate, settings.tls_key)
            if settings.tls_certificate and settings.tls_key
            else None
        )
        server = await serve(
            app.handle, host=settings.host, port=settings.port, reuse_port=True, tls=tls,
            limits=ServerLimits(), error_form=transport_error,
        )  # fmt: skip
        notify_ready()
        gc.set_threshold(*_GC_THRESHOLDS)
        pulse = asyncio.create_task(self._pulse(runtime, server))
        await self._stop.wait()
        await self._drain(runtime, server)
        pulse.cancel()

    async def _build(self) -> Runtime:
        settings = self._settings
        ring = KeyRing.open_for(settings)
        self._engine = engine = await asyncio.to_thread(_open_database, settings)
        redis = PipelinedRedis(settings.effective_redis_url, SCRIPTS.all())
        with contextlib.suppress(AiriError):
            await redis.connect()
        key_log = KeyLog(engine, None, ring)
        keys = await asyncio.to_thread(key_log.new_map)
        resolver = SecretResolver(engine, ring)
        self._holder = process_name()
        await asyncio.to_thread(register_process, engine, self._holder)
        admission = Admission(redis, self._holder, AdmissionOptions(processes=settings.workers))
        await admission.start()
        emitter = Emitter(settings.writer_socket, self._name)
        await emitter.start()
        router = Router()
        control = HttpPool(f"unix:{settings.control_socket}", options=ClientOptions(use_proxy=False))
        content = ContentStore(engine, ring)
        identities = Identities()
        runtime: Runtime
        settled = 0

        async def install(snapshot: Snapshot) -> None:
            nonlocal settled
            if snapshot.table is not runtime.snapshot.table:
                await router.apply(snapshot.table)
            identities.apply(snapshot.document)
            runtime.snapshot = snapshot
            if len(snapshot.document.resources) > settled * _GROWN:
                settled = len(snapshot.document.resources)
                # A snapshot lives long and holds no cycles. Kept out of the collector's sight, a large one does not
                # cost every full collection tens of milliseconds, in which no call moves.
                gc.collect(1)
                gc.freeze()

        watcher = Watcher(
            engine, redis, ConfigStore(engine, None), key_log, keys,
            lambda document: Snapshot.build(document, resolver, settings.control_socket, before=runtime.snapshot), install,
        )  # fmt: skip
        runtime = Runtime(
            process=self._name, snapshot=Snapshot.empty(), keys=keys, identities=identities, keyring=ring, watcher=watcher, redis=redis,
            admission=admission, router=router, emitter=emitter, content=content,
            responses=ResponseStore(engine, content), control=ControlProxy(control), max_in_flight=settings.max_calls,
        )  # fmt: skip
        await watcher.start()
        return runtime

    async def _pulse(self, runtime: Runtime, server: Server) -> None:
        """Once a second: the calls in flight and this process's gauges."""
        while True:
            runtime.emitter.live([_live(exchange) for exchange in list(runtime.in_flight.values())])
            for place in runtime.router.status():
                runtime.emitter.gauge("pool_waiting", place.waiting, {"pool": place.name})
            runtime.emitter.gauge("gateway_in_flight", len(runtime.in_flight))
            runtime.emitter.gauge("gateway_connections", len(server.connections))
            runtime.emitter.gauge("gateway_open_reservations", runtime.admission.open)
            runtime.emitter.gauge("gateway_snapshot_version", runtime.snapshot.version)
            await asyncio.sleep(1)

    async def _drain(self, runtime: Runtime, server: Server) -> None:
        """Answer new calls with 503 and ``Retry-After`` while running ones end, at most 30 s; then leave."""
        runtime.draining = True
        runtime.watcher.stop()
        deadline = time.monotonic() + DRAIN_S
        while runtime.in_flight and time.monotonic() < deadline:  # noqa: ASYNC110  # ends once in a process' life
            await asyncio.sleep(_DRAIN_POLL_S)
        server.close_listeners()
        await server.drain(_REST_S)  # what is left watches the dashboard
        await runtime.admission.close()
        await runtime.router.close()
        await runtime.emitter.close()
        await runtime.redis.close()
        await asyncio.to_thread(unregister_process, self._engine, self._holder)


def _open_database(settings: Settings) -> Engine:
    """Open AIRI's database with its tables up to date: whichever process is first brings them there."""
    engine = open_engine(settings.effective_database_url, full_sync=True)
    prepare(engine)
    migrate(engine, "policies", MIGRATIONS)
    return engine


def _live(exchange: Exchange) -> LiveCall:
    key, answer = exchange.key, exchange.answer
    return LiveCall(
        trace_id=exchange.trace_id,
        tenant=key.tenant if key is not None else "",
        started_unix_ns=exchange.started_unix_ns,
        stage=next(reversed(exchange.marks), "auth"),
        request_id=exchange.request_id,
        team=(key.team or "") if key is not None else "",
        key_id=key.id if key is not None else "",
        model=exchange.model,
        target=answer.target if answer is not None else "",
        stream=exchange.stream,
        output_tokens=exchange.chunks,
        run_id=exchange.run.run_id if exchange.run is not None else "",
        session=exchange.session,
        simulated=answer.simulated if answer is not None else False,
    )


def main() -> int:
    """Run a gateway process as ``AIRI_PROCESS_INDEX`` (0 when not given)."""
    import uvloop

    index = int(os.environ.get("AIRI_PROCESS_INDEX", "0"))
    configure(f"gateway-{index}")
    settings = Settings.from_environment()
    # While a thread reads keys or compiles a snapshot, the loop gets the interpreter back after this long, not after 5 ms.
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(GatewayProcess(settings, index).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
