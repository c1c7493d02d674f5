"""Values of runs (inputs, outputs, results of effects): small facts in the row, content in the content store.

A reference is a short text: ``=JSON`` for ``null``, booleans and numbers, which tell nobody anything, and
``@HASH`` for content, which lies encrypted with the tenant's key in the content store of the runs database.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection

from airi.errors import AiriError

_CACHE_ENTRIES = 2_048
_CACHE_VALUE_BYTES = 64 * 1024
VALUE_LIMIT = 16 * 1024 * 1024
"""The most bytes (as JSON) that one input, output or result may have."""


class ContentRoom(Protocol):
    """The part of :class:`airi.content.ContentStore` that runs need."""

    def put_in(self, connection: Connection, tenant: str, data: bytes, retention: Any) -> str:
        """Store within the caller's transaction; return the reference."""

    def get_in(self, connection: Connection, tenant: str, ref: str) -> bytes | None:
        """Read within the caller's transaction."""


class ValueLostError(AiriError):
    """Content that a run refers to is gone."""

    code = "content_lost"


class ValueTooLargeError(AiriError):
    """A value is larger than a run may hold."""

    status = 413
    code = "value_too_large"


class Values:
    """Puts values away and gets them back. What it returns is shared: never change it."""

    def __init__(self, content: ContentRoom) -> None:
        self._content = content
        self._cache: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def dump(self, connection: Connection, tenant: str, value: Any) -> str:
        """Store a JSON value for the life of its run; return its reference."""
        data = msgspec.json.encode(value)
        if value is None or isinstance(value, bool | int | float):
            return f"={data.decode()}"
        if len(data) > VALUE_LIMIT:
            raise ValueTooLargeError(
                f"a value of {len(data):,} bytes; a run holds at most {VALUE_LIMIT:,} in one"
            )
        ref = f"@{self._content.put_in(connection, tenant, data, 'run')}"
        if len(data) <= _CACHE_VALUE_BYTES:
            self._remember(tenant, ref, msgspec.json.decode(data))
        return ref

    def load(self, connection: Connection, tenant: str, ref: str | None) -> Any:
        """The value of a reference; ``None`` for no reference."""
        if ref is None:
            return None
        if ref.startswith("="):
            return msgspec.json.decode(ref[1:])
        with self._lock:
            if (tenant, ref) in self._cache:
                self._cache.move_to_end((tenant, ref))
                return self._cache[tenant, ref]
        data = self._content.get_in(connection, tenant, ref[1:])
        if data is None:
            raise ValueLostError("the content of a run is gone from the content store")
        value = msgspec.json.decode(data)
        if len(data) <= _CACHE_VALUE_BYTES:
            self._remember(tenant, ref, value)
        return value

    def _remember(self, tenant: str, ref: str, value: Any) -> None:
        with self._lock:
            self._cache[tenant, ref] = value
            while len(self._cache) > _CACHE_ENTRIES:
                self._cache.popitem(last=False)
