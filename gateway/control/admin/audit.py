"""The audit trail: reading it and checking its chain."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query

from airi import audit
from gateway.control.admin.views import listing
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services


def router(services: Services) -> APIRouter:
    """Return the routes; a tenant's auditor sees what concerns the tenant."""
    routes = APIRouter(prefix=ADMIN, tags=["audit"])
    reader = Depends(require(services, "audit.read"))
    platform = Depends(require(services, "platform.write"))

    @routes.get("/audit", summary="List entries, newest first")
    def entries(
        who: Principal = reader,
        tenant: str | None = None,
        before: int | None = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> dict[str, Any]:
        wanted = tenant if who.platform else who.tenant
        found = audit.entries(services.engine, tenant=wanted, before=before, limit=limit + 1)
        return listing([msgspec.to_builtins(entry) for entry in found[:limit]], has_more=len(found) > limit)

    @routes.get("/audit/verify", summary="Walk the whole chain")
    def verify(
        who: Principal = platform, anchor_seq: int | None = None, anchor_digest: str | None = None
    ) -> dict[str, Any]:
        anchor = (anchor_seq, anchor_digest) if anchor_seq is not None and anchor_digest is not None else None
        report = audit.verify(services.engine, anchor)
        return {"object": "audit_report", "ok": report.ok, **asdict(report)}

    return routes
