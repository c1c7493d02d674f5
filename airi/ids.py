"""Identifiers: sortable by time, cheap to make, safe in URLs."""

from __future__ import annotations

import os
import time
from binascii import hexlify


def new_trace_id() -> str:
    """Return a W3C trace id: 32 hex digits, the first 12 of them the Unix time in milliseconds."""
    return hexlify((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10)).decode()


def new_span_id() -> str:
    """Return a W3C span id: 16 hex digits."""
    return hexlify(os.urandom(8)).decode()


def new_id(prefix: str) -> str:
    """Return ``prefix_`` and 32 hex digits that sort by creation time (to the millisecond)."""
    return f"{prefix}_{new_trace_id()}"
