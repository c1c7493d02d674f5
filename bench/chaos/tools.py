"""The tools of the example workflows, in front of the witness: whatever they do is a line in its log, by key."""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any

from agents.tools import ToolContext, tool

_DELAY_MS, _PAY_MS = 30, 1_000
"""The effect is applied at once, the answer comes later: time to be killed between the two."""


def _witness(kind: str, context: ToolContext, answer: Any, delay_ms: int = _DELAY_MS) -> Any:
    request = urllib.request.Request(
        f"{os.environ['WITNESS']}/{kind}",
        data=json.dumps({"echo": answer, "delay_ms": delay_ms}).encode(),
        headers={"idempotency-key": context.key, "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        json.load(response)
    return answer


@tool("search.docs", effect="idempotent")
def search_docs(query: str, context: ToolContext, limit: int = 2) -> list[dict[str, str]]:
    """Search the notes."""
    return list(_witness("idempotent", context, [{"title": "leases", "text": f"{query[:60]} ({limit})"}]))


@tool("crm.lookup", effect="idempotent")
def lookup(customer: str, context: ToolContext) -> dict[str, str]:
    """Find a customer by name."""
    return dict(_witness("idempotent", context, {"name": customer, "plan": "pro"}))


@tool("tickets.reply", effect="keyed")
def reply(customer: str, text: str, context: ToolContext) -> dict[str, object]:
    """Send an answer to a customer, once a key."""
    return dict(_witness("keyed", context, {"sent": True, "to": customer, "length": len(text)}))


@tool("tickets.escalate", effect="keyed")
def escalate(customer: str, reason: str, context: ToolContext) -> dict[str, object]:
    """Hand a ticket to a colleague, once a key."""
    return dict(_witness("keyed", context, {"escalated": customer, "reason": reason}))


@tool("chaos.pay", effect="unsafe")
def pay(customer: str, context: ToolContext) -> dict[str, object]:
    """Pay something out: the other side knows no keys, so a repetition would pay twice."""
    return dict(_witness("unsafe", context, {"paid": customer}, _PAY_MS))
