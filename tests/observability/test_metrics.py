"""The page that Prometheus scrapes is read by Prometheus' own parsers."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from observability.dayfile import Written
from observability.exposition import Exposition
from observability.histogram import BOUNDS_US, BUCKETS, bucket, quantile_us
from observability.live import LiveTable
from observability.metrics import _MOST_SERIES, Metrics, write_processes
from observability.record import Attempt
from observability.wire import Hello, Pulse
from tests.observability.make import call, span

NASTY = 'a"b\\c\nd{e}, f="g"'


def page(metrics: Metrics, openmetrics: bool, gauges: dict[str, float] | None = None) -> str:
    written = Exposition(openmetrics)
    metrics.write(written)
    live = LiveTable()
    hello = Hello(1, "i", NASTY, 7)
    live.greet(hello)
    live.pulse("i", Pulse([], gauges or {}))
    write_processes(written, live, ("writer", 1, {"loop_lag_seconds": 0.001}))
    return written.text()


def samples(text: str, openmetrics: bool) -> dict[str, float]:
    read = parse_openmetrics if openmetrics else parse_plain
    return {f"{s.name}{sorted(s.labels.items())}": s.value for family in read(text) for s in family.samples}


def metrics_of(*records: object) -> Metrics:
    made = Metrics()
    made.observe(Written(calls=list(records), spans=[span()]), time.time_ns())  # type: ignore[arg-type]
    return made


def test_both_formats_parse_and_agree() -> None:
    metrics = metrics_of(
        call(
            tenant=NASTY,
            detections={"email": 2},
            policy_hit="pii",
            attempts=[Attempt("x", 0, outcome="error"), Attempt("y", 5)],
        ),
        call(status=429, ttft_us=0, cost_usd_micros=0),
        call(model="made up by the caller", alias="", target="", status=404),
    )
    gauges = {"process_resident_bytes": 1e8, 'queue_waiting{pool="p"}': 2, "Bad name": 1, "bad{}}": 1}
    plain = samples(page(metrics, False, gauges), False)
    openm = samples(page(metrics, True, gauges), True)
    assert plain == openm
    assert plain["airi_detections_total[('class', 'email')]"] == 2
    assert f"airi_queue_waiting{sorted({'process': NASTY, 'pid': '7', 'pool': 'p'}.items())}" in plain
    assert "made up" not in page(metrics, False)
    assert any(key.startswith("airi_call_duration_seconds_bucket") for key in plain)


def test_cardinality_is_bounded() -> None:
    metrics = metrics_of(*[call(tenant=f"t{n}") for n in range(_MOST_SERIES + 500)])
    read = samples(page(metrics, True), True)
    calls = {key: value for key, value in read.items() if key.startswith("airi_calls_total")}
    assert len(calls) == _MOST_SERIES + 1
    assert sum(calls.values()) == _MOST_SERIES + 500


@given(st.integers(0, 200_000_000))
def test_a_duration_falls_into_the_bucket_whose_bound_holds_it(us: int) -> None:
    index = bucket(us)
    assert index == BUCKETS - 1 or us <= BOUNDS_US[index]
    assert index == 0 or us > BOUNDS_US[index - 1]


@given(st.lists(st.integers(0, 80_000_000), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_its_bucket(values: list[int], quantile: float) -> None:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket(value)] += 1
    exact = sorted(values)[max(0, -(-int(quantile * 1_000) * len(values) // 1_000) - 1)]
    assert bucket(quantile_us(counts, quantile)) == bucket(exact)
