"""The configuration's history: versions, what each held and changed, and going back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from airi.config.state import body_of
from gateway.control.admin.views import diff_view, listing, result_view, version_view
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services


class RollbackBody(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")

    comment: str = Field(default="", max_length=2_000)


def router(services: Services) -> APIRouter:
    """Return the routes; the history holds every tenant's resources, so it is the platform's alone."""
    routes = APIRouter(prefix=ADMIN, tags=["snapshots"])
    store = services.config_store
    reader = Depends(require(services, "platform.write"))
    writer = Depends(require(services, "config.rollback"))

    @routes.get("/snapshots", summary="List versions, newest first")
    def list_versions(
        who: Principal = reader,
        before: int | None = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 50,
    ) -> dict[str, Any]:
        found = store.history(before=before, limit=limit + 1)
        return listing([version_view(info) for info in found[:limit]], has_more=len(found) > limit)

    @routes.get("/snapshots/current", summary="Read the version that serves")
    def current(who: Principal = reader) -> dict[str, Any]:
        state = store.state()
        resources = [body_of(stored.resource) for _, stored in sorted(state.resources.items())]
        return {
            "object": "snapshot",
            "version": state.version,
            "digest": state.digest,
            "resources": resources,
        }

    @routes.get("/snapshots/{version}", summary="Read one version")
    def show(version: int, who: Principal = reader) -> dict[str, Any]:
        info, document = store.at(version)
        resources = [body_of(resource) for _, resource in sorted(document.resources.items())]
        return {**version_view(info), "resources": resources}

    @routes.get(
        "/snapshots/{version}/diff", summary="What differs from another version (default: the one before)"
    )
    def diff(version: int, against: int | None = None, who: Principal = reader) -> dict[str, Any]:
        before = version - 1 if against is None else against
        return listing([diff_view(item) for item in store.diff(before, version)])

    @routes.post("/snapshots/{version}/rollback", summary="Make a new version with this one's content")
    def rollback(
        version: int, body: Annotated[RollbackBody | None, Body()] = None, who: Principal = writer
    ) -> dict[str, Any]:
        comment = body.comment if body else ""
        return result_view(store.rollback(version, author=who.actor, comment=comment))

    return routes
