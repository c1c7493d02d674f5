"""API keys: issue, list, change, rotate, revoke."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Body, Depends, Query
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from airi.clock import unix_ms
from airi.config.kinds import Budget, Limits, Tenant
from airi.config.units import Milliseconds
from airi.errors import InvalidRequestError
from airi.keys.errors import GrantError, KeyNotFoundError
from airi.keys.log import NewKey
from airi.keys.record import KeyBudget, KeyLimits, KeyRecord
from airi.keys.roles import Grant, check_grant
from airi.secrets import Secret
from gateway.control.admin.views import listing
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services

_HIDDEN = ("digest", "retiring")
T = TypeVar("T")
_BUDGETS = TypeAdapter(list[Budget])
_LIMITS = TypeAdapter(Limits)
_LAST_EXPIRY_MS = 253_402_300_799_000
"""The end of the year 9999."""
_NAME_CHARACTERS = 512


class RotateBody(BaseModel):
    """How long the old secret goes on working."""

    model_config = ConfigDict(extra="forbid")

    overlap: Milliseconds = 24 * 3_600_000
    """A duration such as ``24h``; ``0s`` ends the old secret at once."""


class KeyChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may change on a key; what is not given stays."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    user: str | msgspec.UnsetType | None = msgspec.UNSET
    models: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    routes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    cidrs: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    expires_at_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    limits: KeyLimits | msgspec.UnsetType = msgspec.UNSET
    budgets: tuple[KeyBudget, ...] | msgspec.UnsetType = msgspec.UNSET


def router(services: Services) -> APIRouter:
    """Return the routes. A key's token is in the answer that made it, and nowhere else."""
    routes = APIRouter(prefix=ADMIN, tags=["keys"])
    _add_reading(routes, services)
    writer = Depends(require(services, "keys.write"))
    _add_granting(routes, services, writer)
    _add_ending(routes, services, writer)
    return routes


def _add_reading(routes: APIRouter, services: Services) -> None:
    reader = Depends(require(services, "keys.read"))

    @routes.get("/keys", summary="List keys in order of id")
    def list_keys(
        who: Principal = reader,
        tenant: str | None = None,
        after: str = "",
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> dict[str, Any]:
        wanted = tenant if who.platform else who.tenant
        found = services.key_log.records(tenant=wanted, after=after, limit=limit + 1)
        return listing([key_view(record) for record in found[:limit]], has_more=len(found) > limit)

    @routes.get("/keys/{key_id}", summary="Read one key")
    def get_key(key_id: str, who: Principal = reader) -> dict[str, Any]:
        return key_view(_seen(services, who, key_id))


def _add_granting(routes: APIRouter, services: Services, writer: Any) -> None:
    """Add what gives rights: each answer is checked against the rights of who asks."""
    log = services.key_log

    @routes.post("/keys", summary="Issue a key", status_code=201)
    async def create(body: Annotated[dict[str, Any], Body()], who: Principal = writer) -> dict[str, Any]:
        new = _new_key(services, who, body)
        record, token = await asyncio.to_thread(log.create, new, actor=who.actor)
        await services.keys.now()
        return key_view(record, token)

    @routes.patch("/keys/{key_id}", summary="Change a key's name, scopes, limits, budgets or expiry")
    async def change(
        key_id: str, body: Annotated[dict[str, Any], Body()], who: Principal = writer
    ) -> dict[str, Any]:
        changes = _given(_convert(body, KeyChange))
        await asyncio.to_thread(_seen, services, who, key_id)

        def edit(record: KeyRecord) -> KeyRecord:
            _check_rotation(who, record)
            if record.id == who.key_id and {"limits", "budgets"} & set(changes):
                raise GrantError("a key cannot change its own limits and budgets; ask another administrator")
            edited = msgspec.structs.replace(record, **changes)
            check_grant(who.record, _grant(edited))
            return edited

        record = await asyncio.to_thread(log.change, key_id, edit, actor=who.actor)
        await services.keys.now()
        return key_view(record)


def _add_ending(routes: APIRouter, services: Services, writer: Any) -> None:
    """Add what ends a secret: rotating replaces it, revoking ends the key."""
    log = services.key_log

    @routes.post(
        "/keys/{key_id}/rotate", summary="Give a key a new secret; the old one works for a while more"
    )
    async def rotate(
        key_id: str, body: Annotated[RotateBody | None, Body()] = None, who: Principal = writer
    ) -> dict[str, Any]:
        overlap = (body or RotateBody()).overlap
        _check_rotation(who, await asyncio.to_thread(_seen, services, who, key_id))
        record, token = await asyncio.to_thread(log.rotate, key_id, overlap_ms=overlap, actor=who.actor)
        await services.keys.now()
        return key_view(record, token)

    @routes.delete("/keys/{key_id}", summary="Revoke a key for good")
    @routes.post("/keys/{key_id}/revoke", summary="Revoke a key for good")
    async def revoke(key_id: str, who: Principal = writer) -> dict[str, Any]:
        _check_revocation(who, await asyncio.to_thread(_seen, services, who, key_id))
        record = await asyncio.to_thread(log.revoke, key_id, actor=who.actor)
        await services.keys.now()
        return key_view(record)


def key_view(record: KeyRecord, token: Secret | None = None) -> dict[str, Any]:
    """Return a key without its digests; with its token where it was just made."""
    fields = {name: value for name, value in msgspec.structs.asdict(record).items() if name not in _HIDDEN}
    shown: dict[str, Any] = msgspec.to_builtins(fields)
    shown["budgets"] = budget_views(record.budgets)
    now = unix_ms()
    shown["older_secrets_until_ms"] = [old.until_ms for old in record.retiring if old.until_ms > now]
    if token is not None:
        shown["key"] = token.reveal()
    return {"object": "key", **shown}


def _new_key(services: Services, who: Principal, body: dict[str, Any]) -> NewKey:
    if who.tenant is not None and not who.platform:
        body = {"tenant": who.tenant, **body}
    new = _convert(body, NewKey)
    check_grant(who.record, Grant(new.role, new.tenant, new.models, new.routes, new.cidrs, new.expires_at_ms))
    tenant = services.config_store.current().get(Tenant, new.tenant)
    if tenant is None:
        raise InvalidRequestError(f"there is no tenant {new.tenant!r}", param="tenant")
    if new.team is not None and new.team not in {team.name for team in tenant.teams}:
        raise InvalidRequestError(f"tenant {new.tenant!r} has no team {new.team!r}", param="team")
    if new.expires_at_ms is not None and new.expires_at_ms <= unix_ms():
        raise InvalidRequestError("the expiry lies in the past", param="expires_at_ms")
    return new


def key_budgets(budgets: list[Budget]) -> tuple[KeyBudget, ...]:
    """Return budgets as a key's record holds them."""
    return tuple(KeyBudget(**budget.model_dump()) for budget in budgets)


def budget_views(budgets: tuple[KeyBudget, ...]) -> list[dict[str, Any]]:
    """Return budgets in dollars: micro-dollars inside, dollars for people, as everywhere in the API."""
    return [{"name": b.name, "usd": b.usd / 1_000_000, "window": b.window, "mode": b.mode} for b in budgets]


def _convert(body: dict[str, Any], kind: type[T]) -> T:
    if "budgets" in body:
        body = {**body, "budgets": key_budgets(_checked(_BUDGETS, body["budgets"], "budgets"))}
    if "limits" in body:
        body = {**body, "limits": _checked(_LIMITS, body["limits"], "limits").model_dump()}
    _bound(body)
    try:
        return msgspec.convert(body, kind, from_attributes=True)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at ")
        raise InvalidRequestError(message, param=place.strip("`").removeprefix("$.") or None) from error


def _bound(body: dict[str, Any]) -> None:
    """Refuse what SQL, a calendar or a table for people cannot hold."""
    expiry = body.get("expires_at_ms")
    if isinstance(expiry, int) and expiry > _LAST_EXPIRY_MS:
        raise InvalidRequestError("the expiry lies beyond the year 9999", param="expires_at_ms")
    for field in ("name", "user"):
        text = body.get(field)
        if isinstance(text, str) and (len(text) > _NAME_CHARACTERS or not text.isprintable()):
            raise InvalidRequestError(
                f"{field}: at most {_NAME_CHARACTERS} printable characters", param=field
            )


def _checked(form: TypeAdapter[T], data: Any, name: str) -> T:
    """Read limits or budgets as in a Tenant: a key that is not known is no limit, so it is refused."""
    try:
        found = form.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in (name, *first["loc"]))
        raise InvalidRequestError(f"{path}: {first['msg']}", param=path) from error
    names = [budget.name for budget in found] if isinstance(found, list) else []
    if len(names) != len(set(names)):
        raise InvalidRequestError("two budgets have one name", param=name)
    return found


def _given(change: KeyChange) -> dict[str, Any]:
    fields = {name: getattr(change, name) for name in change.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


def _grant(record: KeyRecord) -> Grant:
    return Grant(record.role, record.tenant, record.models, record.routes, record.cidrs, record.expires_at_ms)


def _seen(services: Services, who: Principal, key_id: str) -> KeyRecord:
    record = services.key_log.get(key_id)
    if not who.sees(record.tenant):
        raise KeyNotFoundError(f"there is no key {key_id!r}")
    return record


def _check_rotation(who: Principal, record: KeyRecord) -> None:
    """Rotating a key hands out all of its rights; a key may always renew itself."""
    if record.id != who.key_id:
        check_grant(who.record, _grant(record))


def _check_revocation(who: Principal, record: KeyRecord) -> None:
    """Ending a key grants nothing, so the tenant's administrator may end any of its keys but the platform's."""
    if record.role == "platform_admin" and not who.platform:
        raise GrantError("only the platform's administrators may revoke a platform_admin's key")
