"""Identifiers: sortable by time, cheap to make, safe in URLs. They name things; they are no secrets."""

from __future__ import annotations

import os
import random
import time

# Seeded once by the system: unpredictable enough for names, and without a system call for each.
_bits = random.Random(os.urandom(32)).getrandbits  # noqa: S311  # never used for keys or tokens


def new_trace_id() -> str:
    """Return a W3C trace id: 32 hex digits, the first 12 of them the Unix time in milliseconds."""
    return f"{time.time_ns() // 1_000_000:012x}{_bits(80):020x}"


def new_span_id() -> str:
    """Return a W3C span id: 16 hex digits."""
    return f"{_bits(64):016x}"


def new_id(prefix: str) -> str:
    """Return ``prefix_`` and 32 hex digits that sort by creation time (to the millisecond)."""
    return f"{prefix}_{new_trace_id()}"
