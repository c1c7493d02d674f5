"""The sending end of the record: called on the hot path, so nothing here blocks, raises or grows without bound.

A record is encoded where it is emitted (so the caller may forget it) and held, as bytes, until the writer says that
its batch is committed. One bound covers everything held; what does not fit is dropped and counted by cause. After
the writer was away its unacknowledged batches are sent again in order; the writer knows which it already has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from airi.ids import new_id
from observability import exposition, wire
from observability.errors import WireError
from observability.process_gauges import ProcessGauges
from observability.record import CallContent, CallRecord, LiveCall, SpanRecord

_log = logging.getLogger("observability.emitter")
_FIRST_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class EmitterLimits:
    """Bounds of one emitter. All sizes are of encoded bytes."""

    held_bytes: int = 16 * 1024 * 1024
    """Pending and unacknowledged together."""
    record_bytes: int = 256 * 1024
    content_bytes: int = 2 * 1024 * 1024
    batch_records: int = 512
    batch_bytes: int = 1024 * 1024
    live_calls: int = 500
    flush_s: float = 0.05
    pulse_s: float = 1.0
    reconnect_max_s: float = 1.0


@dataclass(frozen=True, slots=True)
class _Unacked:
    seq: int
    frame: bytes
    held: int
    made_at: float


_Pending = tuple[bool, bytes, CallContent | None, int]
"""Is it a call (else a span), its encoding, its content, the bytes it holds."""


class Emitter:
    """Sends records of this process to the writer at ``socket``. ``process`` is its name in gauges: ``gateway-0``.

    ``emit``, ``emit_span``, ``live`` and ``gauge`` may be called from any thread, before :meth:`start` too.
    """

    def __init__(self, socket: Path, process: str, limits: EmitterLimits | None = None) -> None:
        self.process = process
        self._socket = socket
        self._limits = limits or EmitterLimits()
        self._lock = threading.Lock()
        self._pending: deque[_Pending] = deque()
        self._unacked: deque[_Unacked] = deque()
        self._held = 0
        self._seq = 0
        self._sent = 0
        self._drops: Counter[str] = Counter()
        self._live: list[LiveCall] = []
        self._live_cut = 0
        self._live_changed = False
        self._gauges = ProcessGauges()
        self._instance = new_id("proc")
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self.connected = False

    # -- called by the pipeline -----------------------------------------------------------------------------------

    def emit(self, record: CallRecord, content: CallContent | None = None) -> None:
        """Take a finished call. Never blocks, never raises; a record that cannot be held is counted in ``drops``.

        ``content`` must already be masked: what is given here is written.
        """
        self._take(record, content)

    def emit_span(self, span: SpanRecord) -> None:
        """Take a finished piece of a run. Same promises as :meth:`emit`."""
        self._take(span, None)

    def live(self, calls: list[LiveCall]) -> None:
        """Replace the list of calls in flight; the writer shows what the last pulse said. Call it each second."""
        limit = self._limits.live_calls
        self._live = calls if len(calls) <= limit else calls[:limit]
        self._live_cut = len(calls) - len(self._live)
        self._live_changed = True

    def gauge(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Set a gauge of this process, shown as ``airi_<name>{process=…, …}``; names are ``[a-z_][a-z0-9_]*``."""
        self._gauges.set(name if not labels else name + exposition.labels_text(labels), value)

    @property
    def drops(self) -> dict[str, int]:
        """Records lost since the start, by cause: ``full``, ``too_large``, ``unencodable``, ``content_…``, ``closed``."""
        return dict(self._drops)

    @property
    def held_bytes(self) -> int:
        """Bytes of records that the writer has not acknowledged."""
        return self._held

    def _take(self, record: CallRecord | SpanRecord, content: CallContent | None) -> None:
        limits = self._limits
        try:
            raw = wire.encoder.encode(record)
        except Exception:  # noqa: BLE001  # a record that cannot be encoded must not fail the call that made it
            self._drop("unencodable")
            return
        size = len(raw)
        if size > limits.record_bytes:
            self._drop("too_large")
            return
        if content is not None:
            content_size = len(content.request) + len(content.response)
            if content_size > limits.content_bytes:
                self._drop("content_too_large")
                content = None
            elif self._held + size + content_size > limits.held_bytes:
                self._drop("content_full")
                content = None
            else:
                size += content_size
        with self._lock:
            if self._held + size > limits.held_bytes:
                self._drops["full"] += 1
                return
            self._held += size
            self._pending.append((type(record) is CallRecord, raw, content, size))

    def _drop(self, cause: str) -> None:
        with self._lock:
            self._drops[cause] += 1

    # -- the sending side -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin sending on the running loop. The writer need not be there yet."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="record emitter")

    async def close(self, patience_s: float = 5.0) -> None:
        """Send what is held and wait until it is acknowledged, at most ``patience_s``; count the rest as dropped."""
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._pending or self._unacked:
                    self._settled.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._settled.wait(), 0.05)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        lost = len(self._pending) + sum(1 for _ in self._unacked)
        if lost:
            self._drops["closed"] += lost

    async def _run(self) -> None:
        wait = _FIRST_WAIT_S
        while True:
            began = time.monotonic()
            try:
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    await self._session(reader, writer)
                finally:
                    self.connected = False
                    writer.close()
            except (OSError, EOFError, WireError, msgspec.DecodeError) as error:
                _log.debug("the record writer is away: %s", error)
            if time.monotonic() - began > self._limits.reconnect_max_s:
                wait = _FIRST_WAIT_S
            await asyncio.sleep(wait)
            wait = min(wait * 2, self._limits.reconnect_max_s)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.frame(wire.Hello(wire.PROTOCOL, self._instance, self.process, self._gauges.pid)))
        for batch in tuple(self._unacked):
            writer.write(batch.frame)
            await writer.drain()
        self.connected = True
        sending = asyncio.create_task(self._send(writer))
        acks = asyncio.create_task(self._receive(reader))
        try:
            done, _ = await asyncio.wait((sending, acks), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (sending, acks):
                task.cancel()
            await asyncio.gather(sending, acks, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        next_pulse = 0.0
        interval = self._limits.flush_s
        while True:
            while (frame := self._next_batch()) is not None:
                writer.write(frame)
                await writer.drain()
            now = time.monotonic()
            if now >= next_pulse or self._live_changed:
                next_pulse = now + self._limits.pulse_s
                writer.write(self._pulse(now))
                await writer.drain()
            slept_at = time.monotonic()
            await asyncio.sleep(interval)
            self._gauges.saw_lag(time.monotonic() - slept_at - interval)

    def _next_batch(self) -> bytes | None:
        limits = self._limits
        calls: list[msgspec.Raw] = []
        spans: list[msgspec.Raw] = []
        contents: list[tuple[int, CallContent]] = []
        held = 0
        while self._pending and len(calls) + len(spans) < limits.batch_records and held < limits.batch_bytes:
            is_call, raw, content, size = self._pending.popleft()
            held += size
            if content is not None:
                contents.append((len(calls), content))
            (calls if is_call else spans).append(msgspec.Raw(raw))
        if not held:
            return None
        self._seq += 1
        self._sent += len(calls) + len(spans)
        frame = wire.frame(wire.Batch(self._seq, calls, spans, contents))
        self._unacked.append(_Unacked(self._seq, frame, held, time.monotonic()))
        return frame

    def _pulse(self, now: float) -> bytes:
        self._live_changed = False
        gauges = self._gauges.collect()
        gauges["emitter_held_bytes"] = float(self._held)
        gauges["emitter_pending_records"] = float(len(self._pending))
        gauges["emitter_unacked_age_seconds"] = now - self._unacked[0].made_at if self._unacked else 0.0
        gauges["emitter_sent_records"] = float(self._sent)
        return wire.frame(wire.Pulse(self._live, gauges, self._live_cut, dict(self._drops)))

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        frames = wire.FrameReader()
        while data := await reader.read(65_536):
            for body in frames.feed(data):
                self._acknowledge(wire.ack_decoder.decode(body).seq)
        raise EOFError("the writer closed the connection")

    def _acknowledge(self, seq: int) -> None:
        released = 0
        while self._unacked and self._unacked[0].seq <= seq:
            released += self._unacked.popleft().held
        with self._lock:
            self._held -= released
        self._settled.set()
