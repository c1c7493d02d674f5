"""What the tests ask of the record."""

from __future__ import annotations

from typing import Any

from tests.support.live import Live, wait_until


def record_of(live: Live, trace_id: str) -> dict[str, Any]:
    """Return the record of a call when it has been written."""
    with live.admin() as admin:

        def look() -> dict[str, Any] | None:
            answer = admin.get(f"/admin/v1/traces/{trace_id}")
            calls: list[dict[str, Any]] = answer.json().get("calls", [])
            return calls[0] if answer.status_code == 200 and calls else None

        found: dict[str, Any] = wait_until(look, 15)
        return found


def newest_record(live: Live, user: str) -> dict[str, Any]:
    """Return the record of the newest call of an end user (for callers that never saw an answer's head)."""
    with live.admin() as admin:

        def look() -> str | None:
            found = admin.get("/admin/v1/traces", params={"q": user, "limit": 1}).json()["data"]
            return str(found[0]["trace_id"]) if found else None

        return record_of(live, wait_until(look, 15))


def decision(record: dict[str, Any], stage: str) -> dict[str, Any]:
    """Return what a stage decided."""
    found: dict[str, Any] = next(item for item in record["decisions"] if item["stage"] == stage)
    return found
