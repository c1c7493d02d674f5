"""Bodies of the control plane's routes: what is no JSON, or has a key twice in an object, is refused as on the model routes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from airi.errors import InvalidRequestError
from gateway.control.http_errors import from_error
from gateway.operations import repeated_key, too_deep
from gateway.repeated_keys import RepeatedKeyError, check_keys

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_WRITING = ("POST", "PUT", "PATCH", "DELETE")
_READ_THEMSELVES = ("/v1/responses", "/v1/messages")
"""Model routes, whose errors have their dialect's form."""


class UniqueKeys:
    """Reads a JSON body before its route does, and hands it on when each of its objects has each key once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not _has_json(scope):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
        raw = b"".join(each.get("body", b"") for each in messages)
        refusal = await asyncio.to_thread(_refusal, raw) if raw else None
        if refusal is not None:
            await from_error(refusal)(scope, receive, send)
            return

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)


def _has_json(scope: Scope) -> bool:
    if (
        scope["type"] != "http"
        or scope["method"] not in _WRITING
        or scope["path"].startswith(_READ_THEMSELVES)
    ):
        return False
    media = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return b"json" in media.lower() or not media


def _refusal(raw: bytes) -> InvalidRequestError | None:
    """Return the 400 for a body that is no JSON or has a key that stands twice.

    Python's own decoder, which reads bodies after this, takes ``NaN`` and halves of surrogate pairs; no store does.
    """
    try:
        check_keys(raw, msgspec.json.decode(raw))
    except RepeatedKeyError as error:
        return repeated_key(error)
    except RecursionError:
        return too_deep()
    except UnicodeDecodeError:
        return InvalidRequestError("The body is not valid UTF-8.", code="invalid_json")
    except msgspec.MsgspecError as error:
        return InvalidRequestError(f"The body is not valid JSON: {error}.", code="invalid_json")
    return None
