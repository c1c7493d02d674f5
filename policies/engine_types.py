"""What goes into a policy decision and what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class CallFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a call without its texts. ``model`` is the alias asked for, ``region`` where it is served."""

    tenant: str
    team: str = ""
    key_id: str = ""
    user: str = ""
    role: str = ""
    model: str = ""
    region: str = ""
    simulated: bool = False
    stream: bool = False
    n: int = 1
    max_tokens: int = 0
    tags: Sequence[str] = ()
    tools: Sequence[str] = ()


class PolicyDecision(msgspec.Struct, kw_only=True):
    """What the policies say. ``detections`` counts matches by class; the texts themselves are never in here.

    ``effect``: ``allow``, ``redact``, ``route`` or ``deny``; ``policy`` and ``reason`` name the policy that decided,
    empty when none applied. ``shadows`` lists what policies in mode ``shadow`` would have done. ``body`` is the rewritten
    request, or ``None`` when it stays as it is.
    """

    effect: str = "allow"
    policy: str = ""
    reason: str = ""
    message: str = ""
    route_to: str | None = None
    shadows: list[dict[str, str]] = msgspec.field(default_factory=list)
    detections: dict[str, int] = msgspec.field(default_factory=dict)
    body: dict[str, Any] | None = None
    elapsed_ns: int = 0
