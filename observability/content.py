"""Content of calls, kept once.

A conversation sends all of its messages with every call. Each message is a node whose address is the hash of the
tenant, its parent's address and itself, so a shared beginning is stored once and an equal message in another
tenant is another node. What is stored here was masked before it left the gateway (:class:`~observability.record.CallContent`).
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from observability.record import CallContent
from observability.schema import INSERT_CONTENT

_REF_BYTES = 20
_DEEPEST = 10_000
_PLAIN, _ZLIB = b"\x00", b"\x01"

_CHAIN = """
WITH RECURSIVE chain(ref, parent, kind, data, depth) AS (
  SELECT ref, parent, kind, data, 0 FROM contents WHERE ref = ?
  UNION ALL
  SELECT c.ref, c.parent, c.kind, c.data, chain.depth + 1
  FROM chain JOIN contents c ON c.ref = chain.parent WHERE chain.depth < ?
) SELECT kind, data FROM chain ORDER BY depth DESC
"""

Node = tuple[bytes, bytes | None, str, bytes]
"""Address, parent's address, kind (``tools``, ``message``, ``request``, ``response``), packed JSON."""


def _pack(data: bytes) -> bytes:
    squeezed = zlib.compress(data, 6) if len(data) > 64 else data
    return _ZLIB + squeezed if len(squeezed) < len(data) else _PLAIN + data


def _unpack(packed: bytes) -> Any:
    data = zlib.decompress(packed[1:]) if packed[:1] == _ZLIB else packed[1:]
    return msgspec.json.decode(data)


def _node(tenant: str, parent: bytes | None, kind: str, value: Any) -> Node:
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    digest = hashlib.blake2b(digest_size=_REF_BYTES)
    for part in (tenant.encode(), parent or b"", kind.encode(), data):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest(), parent, kind, _pack(data)


def nodes_of(tenant: str, content: CallContent) -> tuple[list[Node], bytes | None, bytes | None]:
    """Return the nodes of a call's content and the addresses of its request and response."""
    nodes: list[Node] = []
    parent: bytes | None = None
    request_ref = response_ref = None
    body = _json(content.request)
    if isinstance(body, dict):
        prefix = [("tools", body.pop("tools"))] if "tools" in body else []
        messages = body.pop("messages", None)
        prefix += [("message", message) for message in messages] if isinstance(messages, list) else []
        for kind, value in prefix:
            nodes.append(_node(tenant, parent, kind, value))
            parent = nodes[-1][0]
    if body is not None:
        nodes.append(_node(tenant, parent, "request", body))
        request_ref = nodes[-1][0]
    answer = _json(content.response)
    if answer is not None:
        nodes.append(_node(tenant, None, "response", answer))
        response_ref = nodes[-1][0]
    return nodes, request_ref, response_ref


def _json(data: bytes) -> Any:
    if not data:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return {"unreadable": len(data)}


def write_nodes(connection: sqlite3.Connection, nodes: Iterable[Node]) -> None:
    """Store nodes that are not stored yet, inside the caller's transaction."""
    connection.executemany(INSERT_CONTENT, nodes)


def load(connection: sqlite3.Connection, ref: bytes | None) -> Any:
    """Return the JSON value stored under a request's or response's address, ``None`` where there is none."""
    if ref is None:
        return None
    rows = connection.execute(_CHAIN, (ref, _DEEPEST)).fetchall()
    if not rows:
        return None
    value = _unpack(rows[-1][1])
    messages = [_unpack(data) for kind, data in rows[:-1] if kind == "message"]
    if messages:
        value["messages"] = messages
    for kind, data in rows[:-1]:
        if kind == "tools":
            value["tools"] = _unpack(data)
    return value
