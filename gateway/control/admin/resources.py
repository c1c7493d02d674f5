"""Resources one by one: list, read, write, remove. The same routes for every kind."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Response

from airi.config.edits import SealedValue
from airi.config.errors import UnknownResourceError
from airi.config.kinds import API_VERSION, Tenant
from airi.config.loader import load_data
from airi.config.secrets import seal_values
from airi.config.state import State
from airi.errors import InvalidRequestError
from gateway.control.admin.access import check_delete, check_write, visible
from gateway.control.admin.views import listing, resource_view, result_view
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services

PLURALS = {
    "tenants": "Tenant",
    "providers": "Provider",
    "pools": "Pool",
    "models": "Model",
    "policies": "Policy",
    "tools": "Tool",
    "workflows": "Workflow",
}
IfMatch = Annotated[str | None, Header(description="The ETag that the resource must still have.")]
IfNoneMatch = Annotated[str | None, Header(description="`*`: the resource must not exist yet.")]


def router(services: Services) -> APIRouter:
    """Return the routes of all kinds."""
    routes = APIRouter(prefix=ADMIN, tags=["configuration"])
    for plural, kind in PLURALS.items():
        _add_reading(routes, services, plural, kind)
        _add_writing(routes, services, plural, kind)
    return routes


def _add_reading(routes: APIRouter, services: Services, plural: str, kind: str) -> None:
    reader = Depends(require(services, "config.read"))

    @routes.get(f"/{plural}", summary=f"List {plural}", operation_id=f"list_{plural}")
    def list_all(
        who: Principal = reader,
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> dict[str, Any]:
        state = services.config_store.state()
        mine = _own_tenant(state, who)
        found = [
            stored
            for (stored_kind, name), stored in sorted(state.resources.items())
            if stored_kind == kind and name > after and visible(who, stored.resource, mine)
        ]
        return listing([resource_view(stored) for stored in found[:limit]], has_more=len(found) > limit)

    @routes.get(f"/{plural}/{{name:path}}", summary=f"Read one of {plural}", operation_id=f"get_{plural}")
    def get_one(name: str, response: Response, who: Principal = reader) -> dict[str, Any]:
        state = services.config_store.state()
        stored = state.resources.get((kind, name))
        if stored is None or not visible(who, stored.resource, _own_tenant(state, who)):
            raise UnknownResourceError(f"there is no {kind} {name!r}")
        response.headers["etag"] = f'"{stored.digest}"'
        return resource_view(stored)


def _add_writing(routes: APIRouter, services: Services, plural: str, kind: str) -> None:
    writer = Depends(require(services, "platform.write", "tools.write", "policies.write", "policies.approve"))

    @routes.post(
        f"/{plural}", summary=f"Make one of {plural}", operation_id=f"create_{plural}", status_code=201
    )
    def create(body: Annotated[dict[str, Any], Body()], who: Principal = writer) -> dict[str, Any]:
        return _put(services, who, _completed(body, kind, None), if_match=None, must_be_new=True)

    @routes.put(f"/{plural}/{{name:path}}", summary=f"Write one of {plural}", operation_id=f"put_{plural}")
    def put(
        name: str,
        body: Annotated[dict[str, Any], Body()],
        who: Principal = writer,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> dict[str, Any]:
        data = _completed(body, kind, name)
        return _put(services, who, data, if_match=_etag(if_match), must_be_new=if_none_match == "*")

    @routes.delete(
        f"/{plural}/{{name:path}}", summary=f"Remove one of {plural}", operation_id=f"delete_{plural}"
    )
    def remove(name: str, who: Principal = writer, if_match: IfMatch = None) -> dict[str, Any]:
        check_delete(who, services.config_store.get(kind, name).resource)
        result = services.config_store.delete(kind, name, author=who.actor, if_match=_etag(if_match))
        return result_view(result)


def _put(
    services: Services, who: Principal, data: dict[str, Any], *, if_match: str | None, must_be_new: bool
) -> dict[str, Any]:
    sealed: list[SealedValue] = []
    data = seal_values(data, lambda name, value: sealed.append((name, value)))
    resource = load_data([data])[0].resource
    known = services.config_store.state().resources.get((resource.kind, resource.metadata.name))
    check_write(who, resource, known.resource if known else None)
    result = services.config_store.put(
        resource,
        author=who.actor,
        # What the check above looked at must still be there when the write happens.
        if_match=if_match or (known.digest if known and not who.platform else None),
        must_be_new=must_be_new or (known is None and not who.platform),
        secrets=sealed,
    )
    stored = services.config_store.get(resource.kind, resource.metadata.name)
    return {**resource_view(stored), "result": result_view(result)}


def _completed(body: dict[str, Any], kind: str, name: str | None) -> dict[str, Any]:
    """Fill in what the address already says; refuse what contradicts it."""
    body = {"apiVersion": API_VERSION, "kind": kind, **body}
    if body["kind"] != kind:
        raise InvalidRequestError(f"this address takes a {kind}, not a {body['kind']!r}", param="kind")
    if name is None:
        return body
    metadata = body.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InvalidRequestError("expected a mapping", param="metadata")
    metadata = {"name": name, **metadata}
    if metadata["name"] != name:
        raise InvalidRequestError(
            f"the address says {name!r}; a resource cannot be renamed, make a new one", param="metadata.name"
        )
    return {**body, "metadata": metadata}


def _own_tenant(state: State, who: Principal) -> Tenant | None:
    stored = state.resources.get(("Tenant", who.tenant or ""))
    return stored.resource if stored is not None and isinstance(stored.resource, Tenant) else None


def _etag(header: str | None) -> str | None:
    return header.removeprefix("W/").strip('"') if header else None
