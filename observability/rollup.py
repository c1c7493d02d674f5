"""Minute rollups, made while records are written, so that a chart never scans calls."""

from __future__ import annotations

from collections.abc import Iterable

from observability.histogram import BUCKETS, bucket
from observability.record import CallRecord
from observability.schema import ROLLUP_SUMS

MINUTE_NS = 60_000_000_000
_FIRST_DURATION = ROLLUP_SUMS.index("d0")
_FIRST_TTFT = _FIRST_DURATION + BUCKETS

RollupKey = tuple[int, str, str, str, int]
"""Minute (since 1970), tenant, model, target, simulated."""


def is_error(status: int) -> bool:
    """Say whether a call failed. A caller that left (499) did not get its answer, so it counts as an error."""
    return status >= 400


def rollup(calls: Iterable[CallRecord]) -> dict[RollupKey, list[int]]:
    """Sum calls by :data:`RollupKey`; the values are in the order of :data:`ROLLUP_SUMS`."""
    sums: dict[RollupKey, list[int]] = {}
    for call in calls:
        key = (
            call.started_unix_ns // MINUTE_NS,
            call.tenant,
            call.alias,  # what no alias stands for is the caller's own text: it may not make rows
            call.target,
            int(call.simulated),
        )
        row = sums.get(key)
        if row is None:
            row = sums[key] = [0] * len(ROLLUP_SUMS)
        row[0] += 1
        row[1] += is_error(call.status)
        row[2] += call.input_tokens
        row[3] += call.output_tokens
        row[4] += call.cached_tokens
        row[5] += call.cost_usd_micros
        row[6] += call.duration_us
        row[_FIRST_DURATION + bucket(call.duration_us)] += 1
        if call.ttft_us:
            row[_FIRST_TTFT + bucket(call.ttft_us)] += 1
    return sums
