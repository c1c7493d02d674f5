"""Header blocks: joining without injection, and the names that belong to one hop."""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus

Headers = Iterable[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

REASONS: dict[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus}

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def join_headers(headers: Headers | bytes, owned: frozenset[bytes]) -> bytes:
    """Return the block ``name: value\\r\\n…`` of ``headers`` without the names in ``owned``.

    Names are lower-case. ``bytes`` are a block joined before and pass untouched. Raises ``ValueError`` when a
    name or a value would end its line early, since that is how a caller's text becomes a header of ours.
    """
    if isinstance(headers, bytes):
        return headers
    parts: list[bytes] = []
    for name, value in headers:
        if name not in owned:
            parts += (name, b": ", value, b"\r\n")
    block = b"".join(parts)
    # Each line must end where it was ended here: bytes.splitlines breaks at CR, LF and CRLF alike.
    if len(block.splitlines()) * 4 != len(parts) or 0 in block:
        raise ValueError("a header holds a line break or a NUL")
    return block


def end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return what of ``headers`` (lower-case names) may travel past one hop (RFC 9110 §7.6.1)."""
    named = [value for name, value in headers if name == b"connection"]
    drop = HOP_BY_HOP
    if named:
        drop |= {token.strip().lower() for value in named for token in value.split(b",")}
    return [pair for pair in headers if pair[0] not in drop]


def http_date(unix_seconds: float) -> bytes:
    """Return an IMF-fixdate (RFC 9110 §5.6.7)."""
    t = time.gmtime(unix_seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
        f"{t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"
    ).encode()
