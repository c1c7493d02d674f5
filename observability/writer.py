"""The record writer: ``python -m observability.writer``.

Takes records from every process over a unix socket, commits them to the day's file, and only then acknowledges;
keeps what is running in memory; answers questions about both over HTTP on a second socket; exports to OTLP when the
environment names an endpoint. Nothing waits for it: while it is away, senders hold what they can and count the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time

import msgspec

from airi import logs
from airi.settings import Settings
from airi.up.ready import notify_ready
from observability import wire
from observability.dayfile import Written
from observability.errors import WireError
from observability.exporter import Exporter, open_exporter
from observability.ingest import Ingest
from observability.live import LiveTable
from observability.metrics import Metrics
from observability.process_gauges import ProcessGauges
from observability.writer_http import WriterHttp

_log = logging.getLogger("observability.writer")
_DRAIN_S = 10.0


class Writer:
    """All parts of the process. :meth:`start` listens, :meth:`stop` commits what has arrived and closes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.live = LiveTable()
        self.metrics = Metrics()
        self.gauges = ProcessGauges()
        self.exporter: Exporter | None = open_exporter(os.environ)
        self.ingest = Ingest(settings.records, settings.record_days, self._written)
        self._http = WriterHttp(self)
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open today's file, then listen on both sockets."""
        sockets = self._settings.sockets
        sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self.ingest.open()
        self._background.append(asyncio.create_task(self.ingest.run(), name="ingest"))
        self._background.append(asyncio.create_task(self._watch_loop(), name="loop lag"))
        questions = sockets / "writer-http.sock"
        for stale in (self._settings.writer_socket, questions):
            stale.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._accept, self._settings.writer_socket, backlog=128
        )
        self._settings.writer_socket.chmod(0o600)
        await self._http.start(questions)

    async def stop(self) -> None:
        """Take no more frames, commit what was read, close everything."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ingest.drain(), _DRAIN_S)
        await self._http.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.ingest.close()
        if self.exporter is not None:
            await asyncio.to_thread(self.exporter.close)

    def _written(self, written: Written) -> None:
        self.metrics.observe(written, time.time_ns())
        if self.exporter is not None:
            self.exporter.offer(written.calls, written.spans)

    async def _watch_loop(self) -> None:
        interval = 0.1
        while True:
            slept_at = time.monotonic()
            await asyncio.sleep(interval)
            self.gauges.saw_lag(time.monotonic() - slept_at - interval)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            await self._serve(reader, writer)
        except (WireError, msgspec.DecodeError) as error:
            _log.warning("a sender was cut off: %s", error)
        except (OSError, asyncio.CancelledError):
            pass  # the sender is gone, or this process is stopping: both end the connection and nothing else
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = wire.FrameReader()
        hello: wire.Hello | None = None

        def acknowledge(seq: int) -> None:
            if not writer.is_closing():
                writer.write(wire.frame(wire.Ack(seq)))

        try:
            while data := await reader.read(1 << 18):
                for body in frames.feed(data):
                    message = wire.message_decoder.decode(body)
                    if isinstance(message, wire.Hello):
                        hello = self._greet(message)
                    elif hello is None:
                        raise WireError("the first frame must be a hello")
                    elif isinstance(message, wire.Batch):
                        await self.ingest.offer(hello.instance, message, acknowledge)
                    else:
                        self.live.pulse(hello.instance, message)
        finally:
            if hello is not None:
                self.live.leave(hello)

    def _greet(self, hello: wire.Hello) -> wire.Hello:
        if hello.protocol != wire.PROTOCOL:
            raise WireError(f"{hello.process} speaks protocol {hello.protocol}, this writer {wire.PROTOCOL}")
        self.live.greet(hello)
        return hello


async def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logs.configure("writer")
    writer = Writer(Settings.from_environment())
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await writer.start()
    notify_ready()
    await stopping.wait()
    await writer.stop()


if __name__ == "__main__":
    asyncio.run(main())
