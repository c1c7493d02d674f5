"""Emitter and writer as processes: nothing acknowledged is lost, nothing stands twice, what is lost is counted."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable

import pytest

from airi.ids import new_trace_id
from observability import dayfile, wire
from observability.emitter import Emitter
from observability.query import CallFilter
from observability.record import CallContent, LiveCall
from observability.store import RecordStore
from tests.observability.conftest import WriterProcess, until
from tests.observability.make import call, span

MakeEmitter = Callable[..., Emitter]


def users(writer: WriterProcess) -> list[str]:
    """The end users of every stored call, sorted as numbers."""
    found = []
    for _, path in dayfile.days(writer.settings.records):
        with sqlite3.connect(path) as db:
            found += [user for (user,) in db.execute("SELECT end_user FROM calls")]
        db.close()
    return sorted(found, key=int)


async def test_a_record_reaches_the_file_with_its_content(
    writer: WriterProcess, make_emitter: MakeEmitter
) -> None:
    emitter = make_emitter()
    record = call()
    emitter.emit(record, CallContent(b'{"messages":[{"role":"user","content":"<EMAIL>"}]}', b'{"id":"r"}'))
    emitter.emit_span(span(run_id="run_5"))
    await emitter.start()
    await until(lambda: emitter.held_bytes == 0)
    store = RecordStore(writer.settings.records)
    assert store.trace("acme", record.trace_id).calls[0].record == record
    assert store.content("acme", record.trace_id, record.span_id)["response"] == {"id": "r"}  # type: ignore[index]
    assert len(store.run("acme", "run_5").spans) == 1
    assert writer.stop() == 0


async def test_the_writer_killed_over_and_over_loses_and_doubles_nothing(
    make_writer: Callable[..., WriterProcess], make_emitter: MakeEmitter
) -> None:
    writer = make_writer()
    writer.start()
    emitters = [make_emitter(f"gateway-{n}", batch_records=7, reconnect_max_s=0.05) for n in range(2)]
    for emitter in emitters:
        await emitter.start()
    sent = 0
    for _ in range(4):
        for _ in range(30):
            for emitter in emitters:
                for _ in range(10):
                    emitter.emit(call(user=str(sent)))
                    sent += 1
            await asyncio.sleep(0.002)
        old = writer.process.pid if writer.process else 0
        await asyncio.to_thread(writer.kill)
        await asyncio.to_thread(writer.start)
        assert writer.process is not None
        assert writer.process.pid != old
    await until(lambda: all(emitter.held_bytes == 0 for emitter in emitters), 20)
    assert users(writer) == [str(n) for n in range(sent)]
    assert all(emitter.drops == {} for emitter in emitters)


async def test_a_batch_that_was_committed_but_not_acknowledged_is_not_doubled(
    writer: WriterProcess, make_emitter: MakeEmitter
) -> None:
    """The exact case of a writer that died between commit and acknowledgement: the same frame comes twice."""
    record = call(user="1")
    hello = wire.frame(wire.Hello(wire.PROTOCOL, "proc_x", "gateway-0", 1))
    batch = wire.frame(wire.Batch(1, [wire.msgspec.Raw(wire.encoder.encode(record))], [], []))
    for _ in range(2):
        reader, stream = await asyncio.open_unix_connection(writer.settings.writer_socket)
        stream.write(hello + batch)
        frames = list(wire.FrameReader().feed(await reader.read(100)))
        assert wire.ack_decoder.decode(frames[0]).seq == 1
        stream.close()
    assert users(writer) == ["1"]
    assert writer.get("/state").json()["duplicate_batches"] == 1


async def test_overflow_is_counted_and_shown(
    make_writer: Callable[..., WriterProcess], make_emitter: MakeEmitter
) -> None:
    writer = make_writer()
    emitter = make_emitter(held_bytes=10_000, record_bytes=3_000, content_bytes=50)
    await emitter.start()
    for n in range(100):
        emitter.emit(call(user=str(n)))
    emitter.emit(call(error_message="x" * 5_000))
    emitter.emit(call(), CallContent(b"x" * 100))
    emitter.emit(call(model=object()))
    kept = 100 - (emitter.drops["full"] - 1)
    assert 5 < kept < 100
    assert emitter.drops == {"full": 101 - kept, "too_large": 1, "content_too_large": 1, "unencodable": 1}
    assert emitter.held_bytes <= 10_000
    writer.start()
    await until(lambda: emitter.held_bytes == 0)
    assert users(writer) == [str(n) for n in range(kept)]
    await until(lambda: writer.get("/state").json()["dropped"].get("full") == 101 - kept)
    assert f'airi_records_dropped_total{{cause="full"}} {101 - kept}' in writer.get("/metrics").text


async def test_live_calls_are_shown_and_vanish_with_their_process(
    writer: WriterProcess, make_emitter: MakeEmitter
) -> None:
    emitter = make_emitter(live_calls=2)
    await emitter.start()
    now = time.time_ns()
    emitter.live(
        [
            LiveCall(trace_id=new_trace_id(), tenant="acme", started_unix_ns=now + n, stage="stream")
            for n in range(3)
        ]
    )
    emitter.gauge("queue_waiting", 3, {"pool": 'a"b'})
    await until(lambda: len(writer.get("/live").json()["data"]) == 2)
    assert writer.get("/live?tenant=rival").json()["data"] == []
    metrics = writer.get("/metrics").text
    assert 'process="gateway-0"' in metrics
    assert 'pool="a\\"b"} 3' in metrics
    assert "airi_live_calls{" in metrics
    await emitter.close()
    await until(lambda: writer.get("/live").json()["data"] == [])


async def test_emitting_from_many_threads_keeps_every_record(
    writer: WriterProcess, make_emitter: MakeEmitter
) -> None:
    emitter = make_emitter("worker")
    await emitter.start()

    def emit_many(first: int) -> None:
        for n in range(first, first + 200):
            emitter.emit(call(user=str(n)))

    threads = [threading.Thread(target=emit_many, args=(200 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await until(lambda: emitter.held_bytes == 0)
    assert users(writer) == [str(n) for n in range(800)]


async def test_a_full_disk_holds_records_back_and_says_so(
    writer: WriterProcess, make_emitter: MakeEmitter
) -> None:
    """A lock that lasts stands for any write that fails for a while."""
    path = dayfile.days(writer.settings.records)[0][1]
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    emitter = make_emitter()
    await emitter.start()
    emitter.emit(call(user="1"))
    await until(lambda: writer.get("/state").json()["fault"], 20)
    assert emitter.held_bytes > 0
    blocker.execute("ROLLBACK")
    blocker.close()
    await until(lambda: emitter.held_bytes == 0, 20)
    assert writer.get("/state").json()["fault"] == ""
    assert users(writer) == ["1"]


async def test_a_stranger_on_the_socket_is_cut_off_alone(
    writer: WriterProcess, make_emitter: MakeEmitter
) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x03abc", wire.frame(wire.Pulse([], {}))):
        reader, stream = await asyncio.open_unix_connection(writer.settings.writer_socket)
        stream.write(garbage)
        assert await reader.read() == b""
        stream.close()
    emitter = make_emitter()
    await emitter.start()
    emitter.emit(call(user="1"))
    await until(lambda: emitter.held_bytes == 0)
    assert len(RecordStore(writer.settings.records).calls("acme", CallFilter()).data) == 1


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text; version=1.0.0"])
async def test_stopping_commits_what_was_read(
    writer: WriterProcess, make_emitter: MakeEmitter, accept: str
) -> None:
    emitter = make_emitter()
    await emitter.start()
    for n in range(500):
        emitter.emit(call(user=str(n)))
    await emitter.close()
    assert writer.get("/metrics", accept).text.startswith("# TYPE airi_calls")
    assert writer.stop() == 0
    assert len(users(writer)) == 500
    assert emitter.drops == {}
