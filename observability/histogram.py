"""Latency histograms with bounds that double: cheap to fill, cheap to add up, close enough to read a p99 from.

The bounds from 10 ms on are those that OpenTelemetry's GenAI conventions recommend; three finer ones stand before
them because a refused call ends in less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence

_SMALLEST_US = 1_250
BOUNDS_US: tuple[int, ...] = tuple(_SMALLEST_US << power for power in range(17))
"""Inclusive upper bounds: 1.25 ms, 2.5 ms, … 81.92 s."""
BUCKETS = len(BOUNDS_US) + 1
"""One more than the bounds: the last takes what is longer."""


def bucket(us: int) -> int:
    """Return the index of the bucket that ``us`` falls into."""
    return min((max(us - 1, 0) // _SMALLEST_US).bit_length(), BUCKETS - 1)


def quantile_us(counts: Sequence[int], quantile: float) -> int:
    """Return the ``quantile`` (0…1) in µs, linear within its bucket; 0 when nothing was counted.

    What falls into the open last bucket is reported as its lower bound.
    """
    total = sum(counts)
    if not total:
        return 0
    rank = quantile * total
    seen = 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            if index >= len(BOUNDS_US):
                return BOUNDS_US[-1]
            lower = BOUNDS_US[index - 1] if index else 0
            return round(lower + (BOUNDS_US[index] - lower) * max(rank - seen, 0) / count)
        seen += count
    return BOUNDS_US[-1]
