"""What an attempt's end means: is it final, may it be tried elsewhere, may it be tried again at the same place."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from airi.http.errors import (
    ConnectFailed,
    HttpClientError,
    PoolTimeout,
    ResponseTooLarge,
    TooManyWaiters,
    TotalTimeout,
)
from airi.secrets import Secret
from routing.call import Header
from routing.errors import NotConfigured, UpstreamError, UpstreamTimeoutError

_ELSEWHERE_ONLY = frozenset({401, 402, 403, 404})
"""The target is set up wrongly (its key, its account, its model's name): others may still serve."""
_HIDDEN = frozenset({401, 402, 403})
"""Never passed on: they speak of our account with the provider, and a caller would read them as its own."""
_RETRYABLE = frozenset({408, 425, 429})
_NOT_RETRYABLE = frozenset({501, 505})
_PASSED_BACK = frozenset(
    {
        b"content-type", b"retry-after", b"openai-processing-ms", b"openai-version", b"openai-model",
        b"x-airi-cost-usd-micros",
    }
)  # fmt: skip
_TYPES = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}
_RUN = b"x-airi-run"
_MESSAGE_LIMIT = 4_096
_LONGEST_S = 30 * 86_400.0
"""A longer wait than this is no wait that anybody meant."""


class Failure(msgspec.Struct):
    """An attempt that brought no answer worth passing on, yet. ``retry_after_s`` is what the upstream asked for."""

    code: str
    elsewhere: bool
    again: bool
    error: UpstreamError | None = None
    status: int = 0
    headers: list[Header] = []
    body: bytes = b""
    retry_after_s: float = 0.0
    unreachable: bool = False
    blame: bool = True
    """Whether the breaker counts it."""
    counts: bool = True
    """Whether it is one of the route's ``retries.max_attempts``."""
    detail: str = ""


def of_error(error: HttpClientError, alias: str) -> Failure:
    """Judge an exchange that broke off. The caller is told the kind; where it happened stands in the record alone."""
    detail = error.message[:200]
    if isinstance(error, TooManyWaiters | PoolTimeout):
        busy = UpstreamError(
            f"The upstream of '{alias}' is busy; try again.", code=error.code, status=503, reached=False
        )
        busy.retry_after_ms = 1_000
        return Failure(error.code, True, True, error=busy, blame=False, detail=detail)
    if isinstance(error, ConnectFailed):  # nobody has begun to serve it: come again
        away = UpstreamError(
            f"The upstream of '{alias}' could not be reached; try again.",
            code=error.code, status=503, reached=False,
        )  # fmt: skip
        away.retry_after_ms = 1_000
        return Failure(error.code, True, True, error=away, unreachable=True, detail=detail)
    if isinstance(
        error, NotConfigured
    ):  # nothing was tried, and the same place fails in the same way until it is set up
        unusable = UpstreamError(
            f"The upstream of '{alias}' is not set up.", code=error.code, status=503, reached=False
        )
        return Failure(error.code, True, False, error=unusable, blame=False, counts=False, detail=detail)
    kind = UpstreamTimeoutError if error.status == 504 else UpstreamError
    words = "took too long" if error.status == 504 else "broke off"
    told = kind(f"The upstream of '{alias}' {words}.", code=error.code, reached=error.reached_upstream)
    # An answer that was too long once is too long again, and no fault of the place.
    large = isinstance(error, ResponseTooLarge)
    final = large or isinstance(error, TotalTimeout)
    return Failure(error.code, not final, not final, error=told, blame=not large, detail=detail)


def of_status(status: int, headers: list[Header], body: bytes, alias: str, secret: Secret | None) -> Failure:
    """Judge an answer that is not a success."""
    again = status in _RETRYABLE or (status >= 500 and status not in _NOT_RETRYABLE)
    failure = Failure("status", again or status in _ELSEWHERE_ONLY, again, status=status)
    # A workflow that fails was run well: the place that ran it is not to blame.
    ran = any(name == _RUN for name, _ in headers)
    failure.blame = not ran and (status >= 500 or status in _HIDDEN)
    if status in _HIDDEN or status < 400:
        failure.error = UpstreamError(
            f"The upstream of '{alias}' refused the gateway's own access.", code="upstream_refused"
        )
        failure.detail = f"status {status}"
        return failure
    # Our own error bodies are always JSON, whatever the upstream's was.
    failure.headers = [header for header in passed_back(headers) if header[0] != b"content-type"]
    failure.headers.append((b"content-type", b"application/json"))
    failure.body = openai_error(status, body, secret)
    if status in (429, 503):
        failure.retry_after_s = retry_after_s(headers)
    return failure


def passed_back(headers: list[Header]) -> list[Header]:
    """Return what of an upstream's headers the caller may see."""
    return [header for header in headers if header[0] in _PASSED_BACK]


def retry_after_s(headers: list[Header]) -> float:
    """Return the seconds an upstream asks to wait: ``retry-after-ms``, ``retry-after`` in seconds or as a date; else 0."""
    found = {name: value for name, value in headers if name in (b"retry-after", b"retry-after-ms")}
    try:
        if b"retry-after-ms" in found:
            seconds = float(found[b"retry-after-ms"]) / 1_000
        else:
            text = found.get(b"retry-after", b"0").decode("latin-1")
            plain = text.replace(".", "", 1).isdecimal()
            seconds = float(text) if plain else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return seconds if 0 < seconds < _LONGEST_S else 0.0


def openai_error(status: int, body: bytes, secret: Secret | None = None) -> bytes:
    """Return an error body in OpenAI's form, whatever form the upstream's has; our own key never stands in it."""
    if secret and secret.reveal().encode() in body:
        body = body.replace(secret.reveal().encode(), b"***")
    found = _find_error(body)
    error = {
        "message": str(found.get("message") or f"The upstream answered with status {status}.")[
            :_MESSAGE_LIMIT
        ],
        "type": str(
            found.get("type")
            or _TYPES.get(status)
            or ("server_error" if status >= 500 else "invalid_request_error")
        ),
        "param": found.get("param"),
        "code": found.get("code"),
    }
    return msgspec.json.encode({"error": error})


def _find_error(body: bytes) -> dict[str, Any]:
    """Find the error in the forms that engines use: nested, flat, or a plain text under ``error`` or ``detail``."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {}
    if not isinstance(data, dict):
        return {}
    inner = data.get("error", data)
    if isinstance(inner, dict):
        return inner if "message" in inner else {"message": data.get("detail")}
    return {"message": inner}
