"""What litellm raises, turned into the upstream's own answer or into one of our errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from airi.http.errors import HttpClientError, Truncated
from routing.adapters.transport import Exchange
from routing.call import Header
from routing.errors import ContractError

_REFUSAL_LIMIT = 500
_PASSED_ON = (b"retry-after", b"retry-after-ms")
_PARAMETER = re.compile(r"parameters: \[\'(\w+)\'")
_BUSY = {429, 503, 529}
"""What an upstream may also say as the first event of a stream whose head said 200."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An upstream's error in OpenAI's form."""

    status: int
    body: bytes
    headers: list[Header] = field(default_factory=list)


def judge(error: Exception, exchange: Exchange, alias: str) -> Refusal:
    """Return the upstream's own answer, or raise what happened below litellm or before it. ``alias`` is the model's name."""
    if exchange.error is not None:
        raise exchange.error from error
    if isinstance(error, ContractError | HttpClientError):
        raise error
    response = exchange.response
    if response is None:
        # Nothing was sent: the request itself cannot be put into the target's dialect.
        raise _untranslatable(error, alias) from None
    if response.status >= 400:
        headers = [header for header in response.headers if header[0] in _PASSED_ON]
        status, words = _said(response.status, exchange.refusal)
        return Refusal(status, _body(words), headers)
    event: Any = getattr(error, "original_exception", error)
    if getattr(event, "status_code", None) in _BUSY:
        return Refusal(event.status_code, _body(""))
    raise Truncated(f"The answer could not be translated: {type(error).__name__}.") from error


def _said(status: int, body: bytes) -> tuple[int, str]:
    """Return an answer's status and its words; both providers' and Amazon's forms of an error are known."""
    try:
        data: Any = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return status, ""
    if isinstance(data, list) and data:
        data = data[0]
    error = data.get("error") if isinstance(data, dict) else None
    held = error if isinstance(error, dict) else data if isinstance(data, dict) else {}
    if status == 400 and b'"API_KEY_INVALID"' in body:
        # Gemini's way to say 401: our key is wrong, not the caller's request.
        status = 401
    words = held.get("message") or held.get("Message")
    return status, words if isinstance(words, str) else ""


def _untranslatable(error: Exception, alias: str) -> ContractError:
    """Return the 400 for a request that litellm would not translate. Only its own validation speaks for itself."""
    text = str(getattr(error, "message", error))
    kind = type(error).__name__
    if kind == "UnsupportedParamsError" and (named := _PARAMETER.search(text)):
        return ContractError(f"The model '{alias}' does not take '{named[1]}'.", param=named[1])
    if kind in ("UnsupportedParamsError", "BadRequestError") and text.startswith("litellm."):
        return ContractError(text.split(": ", 1)[-1].split("\n", 1)[0][:_REFUSAL_LIMIT])
    return ContractError("The request cannot be translated into the dialect of this model's provider.")


def _body(message: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message}})
