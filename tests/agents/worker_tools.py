"""Function tools of the worker processes under test."""

from __future__ import annotations

import json
import os
import time
import urllib.request

from agents.tools import ToolContext, tool


def _post(path: str, key: str, body: dict[str, object]) -> object:
    request = urllib.request.Request(
        os.environ["WITNESS"] + path,
        data=json.dumps(body).encode(),
        headers={"idempotency-key": key, "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@tool("apply.keyed", effect="keyed")
def keyed(context: ToolContext, delay_ms: int = 0, echo: object = None, hold: bool = False) -> object:
    """Apply something once a key."""
    return _post("/keyed", context.key, {"delay_ms": delay_ms, "echo": echo, "hold": hold})


@tool("apply.unsafe", effect="unsafe")
def unsafe(context: ToolContext, delay_ms: int = 0) -> object:
    """Apply something, every time."""
    return _post("/unsafe", context.key, {"delay_ms": delay_ms})


@tool("nap", effect="idempotent")
def nap(ms: int) -> int:
    """Sleep."""
    time.sleep(ms / 1000)
    return ms


@tool("noop", effect="idempotent")
def noop(i: int = 0) -> int:
    """Return the number."""
    return i
