"""What every page has around it: who is signed in, the navigation, and how the record keeps up."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request

from gateway.control.auth import Principal, csrf_token
from gateway.control.reading import Records
from gateway.control.services import Services
from gateway.control.traces import public_state
from observability.errors import WriterUnavailableError

_CAUSES = {
    "full": "the sender's buffer was full",
    "too_large": "too large",
    "unencodable": "could not be encoded",
    "content_too_large": "content too large (the record was kept)",
    "content_full": "no room for content (the record was kept)",
    "closed": "lost at the end of a process",
    "undecodable": "could not be read",
    "unwritable": "refused by the file",
}


class Frame:
    """Makes the context that ``base.html`` needs."""

    def __init__(self, services: Services, records: Records) -> None:
        self._services = services
        self._records = records

    async def context(self, request: Request, who: Principal, section: str, title: str) -> dict[str, Any]:
        """Return the frame of a page of a section (``calls``, ``runs``)."""
        return {
            "title": title,
            "section": section,
            "who": who,
            "csrf": csrf_token(self._services, request),
            "health": await self._health(who),
            "now": time.time(),
        }

    async def _health(self, who: Principal) -> dict[str, Any]:
        """Return the footer's words and tone."""
        try:
            state = public_state(await self._records.writer.state(), everything=who.platform)
        except WriterUnavailableError as error:
            return {"tone": "bad", "text": error.message, "dropped": [], "lag_us": None}
        dropped = [(_CAUSES.get(cause, cause), number) for cause, number in state["dropped"].items()]
        fault = state["fault"]
        return {
            "tone": "bad" if fault else "warn" if dropped else "ok",
            "text": f"Records cannot be written: {fault}" if fault else "",
            "dropped": dropped,
            "lag_us": state["lag_seconds"] * 1_000_000,
        }
