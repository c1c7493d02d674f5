"""Named places where a process may be made to die, so that recovery can be tested where it is hardest.

``AIRI_FAULT_POINT=name:count`` kills the process with SIGKILL the ``count``-th time it passes the point
``name``; several are separated by commas. Unset, a point costs one comparison. The points:

========== ==========================================================================
claim      a step's lease is committed, its work has not begun
intent     the intent of an effect is committed, the call has not begun
call       the request of an effect has been sent, no answer was seen
response   the answer of an effect arrived, nothing of it is recorded
commit     the transaction that records a step's result is committed, nothing after it
publish    outbox rows are marked as published, no message has left
ack        a message's work is done, the broker has not been told
========== ==========================================================================
"""

from __future__ import annotations

import os
import signal
import threading

POINTS = ("claim", "intent", "call", "response", "commit", "publish", "ack")
ENVIRONMENT = "AIRI_FAULT_POINT"


def _read(text: str) -> dict[str, int]:
    remaining: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, _, count = item.partition(":")
        if name not in POINTS or not (count or "1").isdigit():
            raise ValueError(
                f"{ENVIRONMENT}: expected NAME:COUNT with NAME one of {', '.join(POINTS)}, got {item!r}"
            )
        remaining[name] = int(count or 1)
    return remaining


_remaining = _read(os.environ.get(ENVIRONMENT, ""))
_lock = threading.Lock()


def point(name: str) -> None:
    """Die here when the environment asks for it."""
    if _remaining and name in _remaining:
        with _lock:
            _remaining[name] -= 1
            if _remaining[name] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
