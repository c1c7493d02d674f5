"""Day files and the questions asked of them."""

from __future__ import annotations

import datetime as dt
import json
import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observability import dayfile
from observability.dayfile import DAY_NS, DayFile, day_of, start_of_day_ns
from observability.dayread import read
from observability.errors import InvalidFilterError, QueryTooLargeError, RecordStoreError, UnknownTraceError
from observability.query import EVERY_TENANT, CallFilter
from observability.record import CallContent, CallRecord
from observability.store import RecordStore
from tests.observability.make import batch, call, span

TODAY = dt.date(2026, 11, 20)
MIDNIGHT = start_of_day_ns(TODAY)


def write(folder: Path, *records: CallRecord, day: dt.date = TODAY) -> None:
    file = DayFile(folder, day)
    file.write([(f"p{file._last_id}", batch(1, *records))])
    file.close()


def test_a_call_comes_back_whole(tmp_path: Path) -> None:
    record = call(run_id="run_1")
    write(tmp_path, record)
    found = RecordStore(tmp_path).trace("acme", record.trace_id)
    assert [stored.record for stored in found.calls] == [record]
    assert not found.calls[0].has_content


def test_another_tenant_sees_nothing(tmp_path: Path) -> None:
    record = call(run_id="run_1", session="s")
    write(tmp_path, record)
    store = RecordStore(tmp_path)
    with pytest.raises(UnknownTraceError):
        store.trace("rival", record.trace_id)
    assert store.run("rival", "run_1").calls == []
    assert store.content("rival", record.trace_id, record.span_id) is None
    assert store.models("rival", 1) == []
    assert store.series("rival", MIDNIGHT, 0, step_s=60) == []
    assert store.histogram("rival", CallFilter(), step_s=60) == []
    for filters in (
        CallFilter(),
        CallFilter(run_id="run_1"),
        CallFilter(text=record.trace_id),
        CallFilter(session="s"),
    ):
        assert store.calls("rival", filters).data == []
        assert len(store.calls("acme", filters).data) == 1
        assert len(store.calls(EVERY_TENANT, filters).data) == 1


def test_a_batch_is_written_once(tmp_path: Path) -> None:
    file = DayFile(tmp_path, TODAY)
    one, two = call(), call()
    assert len(file.write([("p", batch(1, one)), ("p", batch(1, one)), ("q", batch(1, two))]).calls) == 2
    file.close()
    again = DayFile(tmp_path, TODAY)
    assert again.write([("p", batch(1, one))]).duplicate_batches == 1
    again.close()
    assert len(RecordStore(tmp_path).calls("acme", CallFilter()).data) == 2


def test_a_record_beyond_sqlite_is_refused_alone(tmp_path: Path) -> None:
    file = DayFile(tmp_path, TODAY)
    written = file.write([("p", batch(1, call(cost_usd_micros=1 << 63), call()))])
    file.close()
    assert (len(written.calls), written.undecodable) == (1, 1)


FILTERS = [
    (CallFilter(model="m1"), {"a"}),
    (CallFilter(target="gpu"), {"a"}),
    (CallFilter(target="gpu/0"), {"a"}),
    (CallFilter(outcome="error"), {"b", "c"}),
    (CallFilter(outcome="ok"), {"a"}),
    (CallFilter(outcome="refused"), {"b"}),
    (CallFilter(outcome="cancelled"), {"c"}),
    (CallFilter(status=429), {"b"}),
    (CallFilter(team="t"), {"a"}),
    (CallFilter(key_id="kk"), {"b"}),
    (CallFilter(run_id="run_9"), {"c"}),
    (CallFilter(session="sess"), {"a"}),
    (CallFilter(policy="*"), {"b"}),
    (CallFilter(policy="pii"), {"b"}),
    (CallFilter(policy="other"), set()),
    (CallFilter(simulated=False), {"a"}),
    (CallFilter(min_cost_usd_micros=500), {"a"}),
    (CallFilter(min_duration_us=1_000_000), {"c"}),
    (CallFilter(since_ns=MIDNIGHT + 2), {"b", "c"}),
    (CallFilter(until_ns=MIDNIGHT + 2), {"a"}),
    (CallFilter(text="run_9"), {"c"}),
    (CallFilter(text="eq_b"), {"b"}),
    (CallFilter(text="' OR 1=1 --"), set()),
    (CallFilter(model="m1", outcome="error"), set()),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
def test_filters(tmp_path: Path, filters: CallFilter, expected: set[str]) -> None:
    write(
        tmp_path,
        call(
            user="a",
            alias="m1",
            target="gpu/0",
            team="t",
            session="sess",
            simulated=False,
            cost_usd_micros=900,
            started_unix_ns=MIDNIGHT + 1,
        ),
        call(
            user="b",
            alias="m2",
            status=429,
            key_id="kk",
            policy_hit="pii",
            request_id="req_b",
            started_unix_ns=MIDNIGHT + 2,
        ),
        call(
            user="c",
            alias="m2",
            status=499,
            run_id="run_9",
            duration_us=2_000_000,
            started_unix_ns=MIDNIGHT + 3,
        ),
    )
    store = RecordStore(tmp_path)
    assert {found.end_user for found in store.calls("acme", filters).data} == expected
    bars = store.histogram("acme", filters, step_s=60)
    assert sum(bar.calls for bar in bars) == len(expected)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    starts=st.lists(st.integers(-20, 40), min_size=1, max_size=40),
    limit=st.integers(1, 7),
    late=st.integers(0, 10),
)
def test_pages_over_days_hold_every_call_once_newest_first(
    tmp_path_factory: pytest.TempPathFactory, starts: list[int], limit: int, late: int
) -> None:
    """Calls stand in the file of the day they were committed on, up to a day after their start."""
    folder = tmp_path_factory.mktemp("pages")
    hour = DAY_NS // 24
    calls = [
        call(started_unix_ns=MIDNIGHT + start * hour, user=str(index)) for index, start in enumerate(starts)
    ]
    by_day: dict[dt.date, list[CallRecord]] = {}
    for record in calls:
        by_day.setdefault(day_of(record.started_unix_ns + late * hour), []).append(record)
    for day, records in by_day.items():
        write(folder, *records, day=day)
    store, cursor, seen = RecordStore(folder), "", []
    while True:
        page = store.calls("acme", CallFilter(), limit=limit, cursor=cursor)
        assert len(page.data) <= limit
        seen += page.data
        cursor = page.next_cursor
        if not cursor:
            break
    assert sorted(found.end_user for found in seen) == sorted(record.user for record in calls)
    assert [found.started_unix_ns for found in seen] == sorted(
        (c.started_unix_ns for c in calls), reverse=True
    )


def test_a_strange_cursor_is_refused(tmp_path: Path) -> None:
    for cursor in ("x", "1-2", "-1-1-1", "ffffffffffffffffffff-1-1", "1-0-1"):
        with pytest.raises(InvalidFilterError):
            RecordStore(tmp_path).calls("acme", CallFilter(), cursor=cursor)


def test_a_question_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *[call(started_unix_ns=MIDNIGHT + index) for index in range(3_000)])
    with pytest.raises(QueryTooLargeError, match="narrow"):
        RecordStore(tmp_path, deadline_s=0.0).calls("acme", CallFilter(text="nothing like it"))


def test_rollups_equal_a_full_aggregate(tmp_path: Path) -> None:
    seeded = random.Random(7)
    calls = [
        call(
            tenant=seeded.choice(["acme", "rival"]),
            alias=seeded.choice(["m1", "m2"]),
            target=seeded.choice(["", "sim/0"]),
            status=seeded.choice([200, 200, 429, 500]),
            started_unix_ns=MIDNIGHT + seeded.randrange(600_000_000_000),
            duration_us=seeded.choice([0, 1, 1_250, 1_251, 10_000, 10_001, 81_920_000, 90_000_000]),
            ttft_us=seeded.choice([0, 900, 50_000]),
            cost_usd_micros=seeded.randrange(100),
            simulated=seeded.random() < 0.5,
        )
        for _ in range(2_000)
    ]
    file = DayFile(tmp_path, TODAY)
    for seq in range(10):
        file.write([("p", batch(seq + 1, *calls[seq * 200 : (seq + 1) * 200]))])
    full = file._db.execute(
        "SELECT start_ns / 60000000000, tenant, alias, target, simulated, count(*), sum(status >= 400), "
        "sum(input_tokens), sum(output_tokens), sum(cached_tokens), sum(cost_usd_micros), sum(duration_us), "
        "sum(duration_us <= 1250), sum(duration_us > 81920000), sum(ttft_us > 0) "
        "FROM calls GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    ).fetchall()
    ttft = " + ".join(f"t{index}" for index in range(18))
    rolled = file._db.execute(
        "SELECT minute, tenant, model, target, simulated, calls, errors, input_tokens, output_tokens, cached_tokens, "
        f"cost_usd_micros, duration_us, d0, d17, {ttft} FROM rollups ORDER BY 1, 2, 3, 4, 5"
    ).fetchall()
    file.close()
    assert rolled == full
    store = RecordStore(tmp_path)
    points = store.series("acme", MIDNIGHT, MIDNIGHT + DAY_NS, step_s=3600, by="model")
    mine = [c for c in calls if c.tenant == "acme"]
    assert {p.group: p.calls for p in points} == {
        name: sum(c.alias == name for c in mine) for name in ("m1", "m2")
    }
    assert sum(p.cost_usd_micros for p in points) == sum(c.cost_usd_micros for c in mine)
    assert all(p.p50_duration_us <= p.p95_duration_us <= p.p99_duration_us for p in points)


def test_a_run_is_gathered_with_its_spans(tmp_path: Path) -> None:
    file = DayFile(tmp_path, TODAY)
    file.write(
        [
            (
                "p",
                batch(
                    1, call(run_id="run_1", step="plan"), call(), span(run_id="run_1"), span(run_id="run_2")
                ),
            )
        ]
    )
    file.close()
    found = RecordStore(tmp_path).run("acme", "run_1")
    assert ([c.record.step for c in found.calls], [s.run_id for s in found.spans]) == (["plan"], ["run_1"])


def test_content_is_kept_once_for_a_shared_beginning(tmp_path: Path) -> None:
    system = {"role": "system", "content": "You are helpful. " * 40}
    first = [system, {"role": "user", "content": "hello"}]
    second = [*first, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}]
    records = [call(), call()]
    bodies = [
        json.dumps({"model": "m", "messages": m, "tools": [{"type": "function"}]}).encode()
        for m in (first, second)
    ]
    contents = [(index, CallContent(body, b'{"choices":[]}')) for index, body in enumerate(bodies)]
    file = DayFile(tmp_path, TODAY)
    file.write([("p", batch(1, *records, contents=contents))])
    (nodes,) = file._db.execute("SELECT count(*) FROM contents").fetchone()
    (size,) = file._db.execute("SELECT sum(length(data)) FROM contents").fetchone()
    file.close()
    assert (
        nodes == 1 + 4 + 1 + 2 - 0 - 0
    )  # tools, four messages, two requests of equal rest but other parents, one response
    assert size < len(bodies[1])
    store = RecordStore(tmp_path)
    for record, body in zip(records, bodies, strict=True):
        kept = store.content("acme", record.trace_id, record.span_id)
        assert kept == {"request": json.loads(body), "response": {"choices": []}}
        assert store.trace("acme", record.trace_id).calls[0].has_content


def test_equal_content_of_two_tenants_is_two_nodes(tmp_path: Path) -> None:
    body = CallContent(b'{"messages":[{"role":"user","content":"x"}]}')
    file = DayFile(tmp_path, TODAY)
    file.write([("p", batch(1, call(tenant="a"), call(tenant="b"), contents=[(0, body), (1, body)]))])
    (nodes,) = file._db.execute("SELECT count(*) FROM contents").fetchone()
    file.close()
    assert nodes == 4


def test_old_days_are_unlinked(tmp_path: Path) -> None:
    for back in range(4):
        write(tmp_path, call(), day=TODAY - dt.timedelta(days=back))
    dropped = dayfile.drop_older_than(tmp_path, TODAY - dt.timedelta(days=1))
    assert dropped == [TODAY - dt.timedelta(days=2), TODAY - dt.timedelta(days=3)]
    assert [day for day, _ in dayfile.days(tmp_path)] == [TODAY, TODAY - dt.timedelta(days=1)]
    assert len(list(tmp_path.glob("*2026-11-18*"))) == 0


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    write(tmp_path, call())
    dayfile.path_of(tmp_path, TODAY - dt.timedelta(days=1)).write_bytes(b"not a database" * 100)
    with pytest.raises(RecordStoreError, match="2026-11-19"):
        RecordStore(tmp_path).calls("acme", CallFilter())


def test_a_file_that_retention_removed_meanwhile_reads_as_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "records-2026-01-01.db", 1.0, lambda db: [1], []) == []


def test_reading_while_files_are_opened_and_closed(tmp_path: Path) -> None:
    """Every close of the last connection folds the log into the file and removes it under the readers."""
    stop = threading.Event()

    def keep_writing() -> None:
        seq = 0
        while not stop.is_set():
            seq += 1
            file = DayFile(tmp_path, TODAY)
            file.write([("p", batch(seq, call(user=str(seq))))])
            file.close()

    write(tmp_path, call())
    thread = threading.Thread(target=keep_writing)
    thread.start()
    try:
        store, seen = RecordStore(tmp_path), 0
        for _ in range(150):
            found = len(store.calls("acme", CallFilter(), limit=500).data)
            assert found >= min(seen, 500)
            seen = found
    finally:
        stop.set()
        thread.join(10)
