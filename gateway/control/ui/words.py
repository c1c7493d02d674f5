"""Numbers as people read them: the templates' filters."""

from __future__ import annotations

import datetime as dt
import time

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def duration(us: int | float) -> str:
    """Return a duration in µs as ``420 µs``, ``12.3 ms``, ``1.24 s`` or ``2 min 5 s``."""
    if us < 1_000:
        return f"{us:.0f} µs"
    if us < 999_950:
        return f"{us / 1_000:.3g} ms" if us < 100_000 else f"{us / 1_000:.0f} ms"
    seconds = us / 1_000_000
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def usd(micros: int | float | None) -> str:
    """Return micro-dollars as dollars with as many digits as matter: ``$0.000021``, ``$1.25``."""
    if micros is None:
        return "–"
    if micros == 0:
        return "$0"
    if abs(micros) < 1:
        return "< $0.000001"
    dollars = micros / 1_000_000
    if abs(dollars) >= 1:
        return f"${dollars:,.2f}"
    return "$" + _short_decimals(f"{dollars:.6f}")


def rate(micros_per_million: int) -> str:
    """Return a price per million tokens: ``$0.15/M``."""
    return "$" + _short_decimals(f"{micros_per_million / 1_000_000:,.6f}") + "/M"


def _short_decimals(number: str) -> str:
    """Return a decimal number without the zeros at its end, but for two places."""
    whole, _, digits = number.partition(".")
    return f"{whole}.{digits.rstrip('0'):0<2}"


def count(value: int) -> str:
    """Return a number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def moment(unix_s: float) -> str:
    """Return a time as ``2026-11-20 08:15:02 UTC``."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(unix_s: float) -> str:
    """Return a time as ISO 8601, for ``<time datetime>``."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).isoformat(timespec="milliseconds")


def clock(unix_s: float) -> str:
    """Return the time of day, with the date where it is not today (UTC)."""
    at = dt.datetime.fromtimestamp(unix_s, dt.UTC)
    today = dt.datetime.now(dt.UTC).date()
    return at.strftime("%H:%M:%S") if at.date() == today else at.strftime("%b %d %H:%M")


def ago(unix_s: float) -> str:
    """Return how long ago a time was: ``just now``, ``42 s``, ``3 min``, ``2 h``, ``5 d``."""
    seconds = max(0.0, time.time() - unix_s)
    if seconds < 1:
        return "just now"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def short(identifier: str, keep: int = 8) -> str:
    """Return the end of a long id, where ids that were made together differ."""
    return identifier if len(identifier) <= keep + 4 else f"…{identifier[-keep:]}"


def status_tone(status: int) -> str:
    """Return how a status is coloured: ``ok``, ``warn`` (the caller's doing) or ``bad``."""
    if status < 400:
        return "ok"
    return "warn" if status < 500 else "bad"


_STATUS = {
    200: "OK",
    400: "Bad request",
    401: "Not signed in",
    402: "Budget spent",
    403: "Forbidden",
    404: "Not found",
    408: "Timed out",
    409: "Conflict",
    413: "Too large",
    429: "Limited",
    499: "Caller left",
    500: "Failed",
    502: "Upstream failed",
    503: "Unavailable",
    504: "Upstream timed out",
}


def status_text(status: int) -> str:
    """Return a status in a word or two."""
    return _STATUS.get(status, "OK" if status < 400 else "Error")


_LIVE = {
    "": "arriving",
    "auth": "signed in",
    "admit": "reserved",
    "policy": "being routed",
    "route": "waiting",
    "first_byte": "receiving",
    "last_byte": "ending",
}


def live_stage(mark: str) -> str:
    """Return what a call in flight is doing, from the last stage that it has left behind."""
    return _LIVE.get(mark, mark.replace("_", " "))


FILTERS = {
    "live_stage": live_stage,
    "duration": duration,
    "usd": usd,
    "rate": rate,
    "count": count,
    "moment": moment,
    "iso": iso,
    "clock": clock,
    "ago": ago,
    "short": short,
    "tone": status_tone,
    "status_text": status_text,
}
