"""The admin API of configuration, keys, limits and the audit trail: ``/admin/v1/``.

Traces, usage, runs and policy explanations are routers of their own beside this package.
"""

from __future__ import annotations

from fastapi import APIRouter

from gateway.control.admin import apply, audit, keys, limits, resources, snapshots
from gateway.control.routing import add
from gateway.control.services import Services


def router(services: Services) -> APIRouter:
    """Return all routes of this package."""
    routes = APIRouter()
    add(routes, *(part.router(services) for part in (apply, audit, keys, limits, resources, snapshots)))
    return routes
