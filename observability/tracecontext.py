"""W3C Trace Context: the ``traceparent`` header, read strictly and written plainly.

Source: https://www.w3.org/TR/trace-context-2/ . Flags are a bit field of which only bits 0 (sampled) and 1 (random
trace id) have a meaning yet; OpenTelemetry's SDKs already send ``03``, so the sampled bit is tested as a bit.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST = 512
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
SAMPLED = 0x01
RANDOM = 0x02


class TraceContext(NamedTuple):
    """Where a call hangs in its caller's trace. Ids are lower-case hex (32 and 16 digits)."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED

    @property
    def sampled(self) -> bool:
        """Did the caller record its part?"""
        return bool(self.flags & SAMPLED)


def parse(header: str | bytes | None) -> TraceContext | None:
    """Return the context of a ``traceparent`` header, or ``None`` when there is none or it is malformed.

    Version 00 must be exactly four fields; a later version may have more after a dash; version ff, an all-zero id,
    upper-case digits and anything longer than 512 characters are refused, as the specification asks.
    """
    if not header or len(header) > _LONGEST:
        return None
    if isinstance(header, bytes):
        try:
            header = header.decode("ascii")
        except UnicodeDecodeError:
            return None
    match = _TRACEPARENT.fullmatch(header.strip(" \t"))
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, int(flags, 16))


def format_traceparent(trace_id: str, span_id: str, flags: int = SAMPLED) -> str:
    """Return a version 00 header. Only the flags that version 00 knows are passed on."""
    return f"00-{trace_id}-{span_id}-{flags & (SAMPLED | RANDOM):02x}"
