"""A call in the form of its own API, for targets that speak it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from routing.payload import Payload

_FORMAT = "response_format"


class NativeForm:
    """A call of the Responses API. ``overrides`` are the top-level fields that the gateway decided."""

    __slots__ = ("_overrides", "_payload", "path")

    def __init__(self, body: dict[str, Any], overrides: Mapping[str, Any], path: str = "/responses") -> None:
        self.path = path
        self._payload = Payload(body)
        self._overrides = overrides

    def encode(self, model: str, drop: Sequence[str] = ()) -> bytes:
        """Return the JSON for an upstream that calls the model ``model``. ``drop`` names fields of chat completions."""
        if _FORMAT not in drop:
            return self._payload.encode(model, self._overrides, drop)
        # What chat completions call the response's format stands within ``text`` here.
        text = {
            name: value for name, value in (self._payload.body.get("text") or {}).items() if name != "format"
        }
        return self._payload.encode(model, {**self._overrides, "text": text}, drop)
