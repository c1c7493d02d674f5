"""Function tools of the example workflows. AIRI loads this file by itself when it is started in this folder's parent;
anywhere else name it (or your own file) in AIRI_TOOLS_PATH.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from agents.tools import ToolContext, ToolError, tool

NOTES = {
    "durable execution": "Each step's result is recorded before the next step begins; a crash repeats at most one step.",
    "idempotency": "A call with a stable key can be repeated safely: the other side recognises the key.",
    "leases": "A worker holds a step for some seconds and renews; when it dies the lease runs out and another takes over.",
    "budgets": "Money is reserved before a model is called and settled afterwards, so parallel calls cannot overspend.",
    "approval": "A person's decision is a row in a table; nothing runs while a workflow waits for it.",
    "prefix cache": "Prompts that begin alike are served faster where their beginning was computed before.",
}
CUSTOMERS = {"ann": {"name": "Ann", "plan": "pro"}, "bob": {"name": "Bob", "plan": "free"}}


@tool("search.docs", effect="idempotent")
def search_docs(query: str, limit: int = 2) -> list[dict[str, str]]:
    """Search the notes; returns the titles and texts that fit best."""
    words = set(query.lower().split())

    def fit(item: tuple[str, str]) -> int:
        return len(words & set(f"{item[0]} {item[1]}".lower().replace(",", " ").split()))

    best = sorted(NOTES.items(), key=fit, reverse=True)[: max(1, min(limit, 5))]
    return [{"title": title, "text": text} for title, text in best]


@tool("crm.lookup", effect="idempotent")
def lookup(customer: str) -> dict[str, str]:
    """Find a customer by name."""
    if customer not in CUSTOMERS:
        raise ToolError(f"there is no such customer; there are {', '.join(CUSTOMERS)}")
    return CUSTOMERS[customer]


@tool("tickets.reply", effect="keyed")
def reply(customer: str, text: str, context: ToolContext) -> dict[str, object]:
    """Send an answer to a customer (here: a line in a file), once a key."""
    return _write({"key": context.key, "to": customer, "text": text})


@tool("tickets.escalate", effect="keyed")
def escalate(customer: str, reason: str, context: ToolContext) -> dict[str, object]:
    """Hand a ticket to a colleague (here: a line in a file), once a key."""
    return _write({"key": context.key, "escalated": customer, "reason": reason})


def _write(entry: dict[str, object]) -> dict[str, object]:
    """What a well-made service does with an idempotency key: act when it is new, answer the same when it is not."""
    file = Path(os.environ.get("AIRI_HOME", ".airi")) / "example-outbox.jsonl"
    with file.open("a+") as outbox:
        outbox.seek(0)
        if not any(json.loads(line)["key"] == entry["key"] for line in outbox):
            outbox.write(json.dumps(entry) + "\n")
    return {"sent": True, "key": entry["key"]}
