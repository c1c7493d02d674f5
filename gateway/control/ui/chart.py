"""The histogram above the list of calls: bars in an SVG, each a link that narrows the range to itself."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import Any

HEIGHT = 64
_SLOT = 10
_GAP = 2
_LABELS = 6


@dataclass(frozen=True, slots=True)
class Column:
    """One step: its place, the heights of what went well and what failed, and what it says."""

    x: int
    width: int
    ok_y: float
    ok_height: float
    error_height: float
    since: int
    until: int
    title: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """A chart ready to draw. ``labels`` are (position in percent, text)."""

    width: int
    columns: list[Column]
    labels: list[tuple[float, str]]
    calls: int
    errors: int
    step_s: int
    narrowable: bool


def histogram(data: dict[str, Any]) -> Histogram:
    """Return the chart of :meth:`gateway.control.reading.Records.histogram`'s answer. Heights are by square root.

    The root keeps a single failure visible beside a thousand successes.
    """
    step, since, until = data["step"], data["since"], data["until"]
    first = since // step * step
    slots = max(1, math.ceil((until - first) / step))
    by_at = {bar["at"]: bar for bar in data["bars"]}
    highest = max((bar["calls"] for bar in data["bars"]), default=0)
    columns = []
    for slot in range(slots):
        at = first + slot * step
        bar = by_at.get(at)
        if bar is not None:
            columns.append(_column(slot, at, step, bar["calls"], bar["errors"], highest))
    return Histogram(
        width=slots * _SLOT,
        columns=columns,
        labels=_labels(first, slots, step),
        calls=sum(bar["calls"] for bar in data["bars"]),
        errors=sum(bar["errors"] for bar in data["bars"]),
        step_s=step,
        narrowable=step > 1,
    )


def _column(slot: int, at: int, step: int, calls: int, errors: int, highest: int) -> Column:
    whole = HEIGHT * math.sqrt(calls / highest) if highest else 0
    whole = max(whole, 3.0)
    failed = 0.0 if not errors else max(whole * errors / calls, 2.0)
    words = f"{_text(at, step)}: {calls} {'call' if calls == 1 else 'calls'}"
    if errors:
        words += f", {errors} failed"
    return Column(
        x=slot * _SLOT + _GAP // 2,
        width=_SLOT - _GAP,
        ok_y=round(HEIGHT - whole, 1),
        ok_height=round(whole - failed, 1),
        error_height=round(failed, 1),
        since=at,
        until=at + step,
        title=words,
    )


def _text(at: int, step: int) -> str:
    moment = dt.datetime.fromtimestamp(at, dt.UTC)
    if step >= 86_400:
        return moment.strftime("%b %d")
    return moment.strftime("%H:%M:%S" if step < 60 else "%b %d %H:%M")


def _labels(first: int, slots: int, step: int) -> list[tuple[float, str]]:
    every = max(1, round(slots / _LABELS))
    long = slots * step > 2 * 86_400
    form = "%b %d" if long else "%H:%M" if step >= 15 else "%H:%M:%S"
    return [
        (round(slot / slots * 100, 1), dt.datetime.fromtimestamp(first + slot * step, dt.UTC).strftime(form))
        for slot in range(0, slots, every)
    ]
