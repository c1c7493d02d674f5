"""How the control plane's routes come together."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

ADMIN = "/admin/v1"
"""Where the admin API lives."""


def add(to: APIRouter | FastAPI, *parts: APIRouter) -> None:
    """Put the routes of ``parts`` into ``to`` as they are.

    ``include_router`` would build every route a second time (a third one where routers are nested), to apply a prefix
    and defaults that our parts do not use: a quarter of a second of each start, or of the first request.
    """
    for part in parts:
        to.routes.extend(part.routes)
