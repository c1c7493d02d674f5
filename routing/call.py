"""What the gateway hands in for a call, and what is written down of each attempt to serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from routing.contract import NOTHING, Needs
from routing.native import NativeForm
from routing.payload import Payload
from routing.registry import Route

Header = tuple[bytes, bytes]


@dataclass(slots=True)
class Call:
    """A call ready to be routed. Routing reads it and changes nothing of it but ``sent``.

    ``weight`` is the tenant's share of a full pool; ``priority`` orders one tenant's own waiting calls (higher first).
    ``deadline`` is in seconds of :func:`time.monotonic`. ``headers`` may hold only what is meant for the upstream
    (``traceparent``, ``tracestate``, ``x-request-id``); anything else is left out. ``overrides`` are top-level body fields the
    gateway decided (``max_tokens``, ``stream_options``).
    """

    route: Route
    tenant: str
    payload: Payload
    path: str = "/chat/completions"
    stream: bool = False
    weight: float = 1.0
    priority: int = 0
    input_tokens: int = 0
    predicted_output_tokens: int = 0
    prefix_text: str = ""
    session: str = ""
    deadline: float | None = None
    headers: Sequence[Header] = ()
    overrides: Mapping[str, Any] | None = None
    needs: Needs = NOTHING
    native: NativeForm | None = None
    """The call in the form of its own API, for targets that speak it; ``payload`` is for the others."""
    thinking: bool = False
    """Messages hold ``thinking_blocks`` that another dialect's front has put there: only translated targets take them."""
    sent: bool = False
    """Set by the router: an upstream may have begun to serve it, and no answer has said otherwise."""


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try at one place. Times are microseconds; ``started_us`` counts from the start of routing.

    ``outcome`` is ``ok``, ``status`` (the upstream refused), an error's code, or why the place would not take the call
    (``queue_full``, ``queue_timeout``, ``no_target_available``).
    """

    target: str
    model: str
    label: str
    outcome: str
    status: int
    started_us: int
    queued_us: int
    took_us: int
    detail: str = ""
