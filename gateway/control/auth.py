"""Who calls the control plane, and may they? Bearer keys for programs, a signed cookie for the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from fastapi import Request, Response

from airi import tokens
from airi.errors import AuthenticationError, PermissionDeniedError
from airi.identity import is_identity, is_token
from airi.keys import scopes
from airi.keys.keymap import check_alive
from airi.keys.record import KeyRecord, Role
from airi.keys.roles import PERMISSIONS
from gateway.control import sessions
from gateway.control.services import Services

_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
_NO_KEY = "You must give a key: 'Authorization: Bearer airi_…', or sign in at /ui."


Dependency = Callable[[Request], Awaitable["Principal"]]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is acting. The administrator has no tenant and holds every permission."""

    kind: Literal["admin", "key"]
    tenant: str | None
    team: str | None
    key_id: str | None
    role: Role
    name: str
    record: KeyRecord | None = field(default=None, repr=False)
    run: tokens.RunClaims | None = field(default=None, repr=False)
    """Set when a workflow's step calls with its run token."""

    @property
    def actor(self) -> str:
        """The name in the audit trail and in the configuration's history."""
        if self.kind == "admin":
            return "admin"
        if self.key_id is not None and is_identity(self.key_id):
            return f"identity/{self.tenant}/{self.name}"
        return f"key/{self.key_id}"

    @property
    def platform(self) -> bool:
        """Whether the principal acts for all tenants."""
        return self.kind == "admin" or self.role == "platform_admin"

    def may(self, permission: str) -> bool:
        """Whether the role permits this (in the principal's tenant, or anywhere for the platform's)."""
        return permission in PERMISSIONS[self.role]

    def sees(self, tenant: str | None) -> bool:
        """Whether things of ``tenant`` (``None``: of the platform) may be shown to the principal."""
        return self.platform or (tenant is not None and tenant == self.tenant)

    def demand(self, permission: str, tenant: str | None = None) -> None:
        """Raise :class:`PermissionDeniedError` when the principal may not do this, or not for ``tenant``."""
        if not self.may(permission):
            raise PermissionDeniedError(f"role {self.role} lacks the permission {permission!r}")
        if tenant is not None and not self.sees(tenant):
            raise PermissionDeniedError("this belongs to another tenant")


ADMIN = Principal("admin", None, None, None, "platform_admin", "administrator")


def require(services: Services, *what: str, run_tokens: bool = False) -> Dependency:
    """Return a dependency (for ``Depends``) that yields a :class:`Principal` that is or may one of ``what``.

    ``what`` are roles (``auditor``) and permissions (``keys.write``); none means anybody who is known. The administrator and
    ``platform_admin`` always pass. Run tokens pass only where ``run_tokens`` is set. Writes with the session's cookie
    need the CSRF token, as header ``x-csrf-token`` or form field ``csrf_token``.
    """
    known = {*PERMISSIONS, *(permission for held in PERMISSIONS.values() for permission in held)}
    unknown = set(what) - known
    assert not unknown, f"no such role or permission: {unknown}"

    async def principal(request: Request) -> Principal:
        found = await authenticate(services, request)
        if found.run is not None and not run_tokens:
            raise PermissionDeniedError("a run token cannot be used here")
        if what and not found.platform and found.role not in what and not any(map(found.may, what)):
            raise PermissionDeniedError(f"role {found.role} may not do this; it takes {' or '.join(what)}")
        return found

    return principal


async def authenticate(services: Services, request: Request) -> Principal:
    """Return who calls; :class:`AuthenticationError` (401) when nobody known does."""
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise AuthenticationError(_NO_KEY)
        found = await identify(services, token.strip())
    elif (key := request.headers.get("x-api-key") or request.headers.get("api-key")) is not None:
        found = await identify(services, key.strip())
    else:
        found = await _from_cookie(services, request)
    if found.record is not None:
        scopes.check(found.record, route=request.scope["path"], peer=peer_of(request))
    return found


async def identify(services: Services, token: str) -> Principal:
    """Return whose token this is: the administrator's key, an API key, a run token, or a token of a tenant's issuer."""
    if sessions.same_text(token, services.admin_key.reveal()):
        return ADMIN
    if token.startswith(tokens.PREFIX):
        claims = tokens.verify(services.keyring, token)
        if is_identity(claims.key_id):
            await _know_issuers(services)
            return _principal(services.identities.of_run(claims.tenant, claims.team, claims.key_id), claims)
        record = await services.keys.get(claims.key_id)
        if record is None or record.tenant != claims.tenant:
            raise AuthenticationError("the run token's key is gone")
        check_alive(record)
        return _principal(record, claims)
    if is_token(token):
        await _know_issuers(services)
        return _principal(await services.identities.authenticate(token))
    return _principal(await services.keys.authenticate(token))


async def _know_issuers(services: Services) -> None:
    services.identities.apply(await asyncio.to_thread(services.config_store.current))


async def sign_in(services: Services, token: str) -> tuple[Principal, str]:
    """Return the principal of a key and the cookie of its new session; run tokens cannot sign in."""
    found = await identify(services, token.strip())
    if found.run is not None:
        raise AuthenticationError("a run token cannot sign in")
    if found.key_id is not None and is_identity(found.key_id):
        raise AuthenticationError("sign in with an API key; tokens of an issuer are for programs")
    secret = services.admin_key.reveal().encode() if found.record is None else found.record.digest
    return found, sessions.make(services.keyring, found.key_id, secret)


def set_session(services: Services, request: Request, response: Response, cookie: str) -> None:
    """Put the session's cookie on a response."""
    response.set_cookie(
        sessions.COOKIE,
        cookie,
        max_age=sessions.LIFETIME_MS // 1_000,
        path="/",
        httponly=True,
        samesite="strict",
        secure=services.settings.tls_certificate is not None or request.url.scheme == "https",
    )


def clear_session(response: Response) -> None:
    """Sign out: take the cookie away."""
    response.delete_cookie(sessions.COOKIE, path="/", httponly=True, samesite="strict")


def csrf_token(services: Services, request: Request) -> str:
    """Return the token that forms of this session must carry; empty without a session."""
    cookie = request.cookies.get(sessions.COOKIE)
    return sessions.csrf_token(services.keyring, cookie) if cookie else ""


def peer_of(request: Request) -> str:
    """Return the caller's address: as the gateway tells it over the unix socket, or the connection's own."""
    if request.client is not None and request.client.host:
        return request.client.host
    return request.headers.get("x-forwarded-for", "")


def host_of(request: Request) -> str:
    """Return the host and port that the caller asked for: as the gateway tells it, or the connection's own."""
    host = request.headers.get("host", "")
    if request.client is not None and request.client.host:
        return host
    return request.headers.get("x-forwarded-host") or host


async def _from_cookie(services: Services, request: Request) -> Principal:
    cookie = request.cookies.get(sessions.COOKIE)
    session = sessions.read(services.keyring, cookie) if cookie else None
    if cookie is None or session is None:
        raise AuthenticationError(_NO_KEY)
    if session.key_id is None:
        found, secret = ADMIN, services.admin_key.reveal().encode()
    else:
        record = await services.keys.get(session.key_id)
        if record is None:
            raise AuthenticationError("the session's key is gone; sign in again")
        check_alive(record)
        found, secret = _principal(record), record.digest
    if not sessions.bound(services.keyring, session, secret):
        raise AuthenticationError("the key was changed since; sign in again")
    if request.method not in _SAFE_METHODS:
        await _check_csrf(services, request, cookie)
    return found


async def _check_csrf(services: Services, request: Request, cookie: str) -> None:
    """Refuse a write that another site's page may have caused."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host_of(request):
        raise PermissionDeniedError("this write comes from another site", code="csrf_failed")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise PermissionDeniedError("this write comes from another site", code="csrf_failed")
    token = request.headers.get(sessions.CSRF_HEADER, "")
    if not token and request.headers.get("content-type", "").startswith(_FORM_TYPES):
        field_value = (await request.form()).get(sessions.CSRF_FIELD)
        token = field_value if isinstance(field_value, str) else ""
    if not sessions.csrf_valid(services.keyring, cookie, token):
        raise PermissionDeniedError(
            f"the form is too old; reload the page (a write needs {sessions.CSRF_HEADER})", code="csrf_failed"
        )


def _principal(record: KeyRecord, run: tokens.RunClaims | None = None) -> Principal:
    return Principal(
        "key", record.tenant, record.team, record.id, record.role, record.name or record.id, record, run
    )
