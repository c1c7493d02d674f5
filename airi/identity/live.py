"""Whom a bearer token stands for: checked once, remembered until it expires, never asked of anybody on a call's way.

What is pinned by the tenant's configuration, and never taken from the token: issuer, audience, algorithms (asymmetric
ones alone) and where the issuer's keys are.
"""

from __future__ import annotations

import base64
import hashlib
import time
from binascii import Error as Base64Error
from collections.abc import Callable
from typing import Any

import msgspec

from airi.config.document import ConfigDocument
from airi.config.kinds import Identity, Tenant
from airi.errors import AuthenticationError
from airi.identity.claims import PREFIX, fits, record_of
from airi.identity.errors import TokenRefusedError
from airi.identity.fetch import fetch_keys
from airi.identity.keyset import Fetch, KeySet, SigningKey
from airi.keys.record import KeyRecord

MAX_CHARACTERS = 8_192
MAX_REMEMBERED = 10_000
BELIEVED_S = 300.0
"""A token that was found right is checked again after this long, so that a withdrawn key ends its tokens."""
_UNKNOWN = "The token is of no issuer and audience that a tenant of this gateway trusts."


_Source = tuple[str, str | None, str | None, str]


class _Trust:
    """One tenant's identity. ``live`` ends what was remembered when the configuration changes."""

    __slots__ = ("identity", "keys", "live", "resource", "source", "teams", "tenant")

    def __init__(self, resource: Tenant, identity: Identity, source: _Source, keys: KeySet) -> None:
        self.resource = resource
        self.tenant = resource.metadata.name
        self.identity = identity
        self.teams = frozenset(team.name for team in resource.teams)
        self.source = source
        self.keys = keys
        self.live = True

    def right_for(self, resource: Tenant, identity: Identity) -> bool:
        """Whether this stands for the tenant as it is now, too."""
        if self.resource is resource:
            return True
        teams = frozenset(team.name for team in resource.teams)
        return self.identity == identity and self.teams == teams


def is_token(text: str) -> bool:
    """Whether a bearer's text looks like a signed token and not like a key: three parts, the first a JSON object."""
    return text.startswith("eyJ") and text.count(".") == 2


def is_identity(key_id: str) -> bool:
    """Whether a record's id is that of a token's subject, and not that of a key."""
    return key_id.startswith(PREFIX)


class Identities:
    """The tenants' issuers, and the tokens that were found right. Everything here runs on one event loop."""

    def __init__(self, fetch: Fetch = fetch_keys, *, unix_s: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._unix_s = unix_s
        self._document: ConfigDocument | None = None
        self._by_issuer: dict[str, list[_Trust]] = {}
        self._by_tenant: dict[str, _Trust] = {}
        self._keys: dict[_Source, KeySet] = {}
        self._remembered: dict[bytes, tuple[float, _Trust, KeyRecord]] = {}
        self._subjects: dict[str, KeyRecord] = {}

    def apply(self, document: ConfigDocument) -> None:
        """Trust whom the document says from now on. What did not change keeps its keys and its tokens."""
        if document is self._document:
            return
        self._document = document
        before, self._by_tenant, self._by_issuer = self._by_tenant, {}, {}
        earlier, self._keys = self._keys, {}
        for tenant in document.all(Tenant):
            if tenant.identity is None:
                continue
            trust = before.get(tenant.metadata.name)
            if trust is not None and trust.right_for(tenant, tenant.identity):
                del before[trust.tenant]
            else:
                trust = self._trust(tenant, tenant.identity, earlier)
            self._keys[trust.source] = trust.keys
            self._by_tenant[trust.tenant] = trust
            self._by_issuer.setdefault(trust.identity.issuer, []).append(trust)
        for gone in before.values():
            gone.live = False
        for trusts in self._by_issuer.values():  # whoever requires more is asked first
            trusts.sort(key=lambda trust: (-len(trust.identity.require), trust.tenant))

    def _trust(self, tenant: Tenant, identity: Identity, earlier: dict[_Source, KeySet]) -> _Trust:
        source = (identity.issuer, identity.jwks_url, identity.jwks_file, identity.tls.model_dump_json())
        keys = self._keys.get(source) or earlier.get(source)
        if keys is None:
            keys = KeySet(identity, self._fetch)
            keys.prefetch()
        return _Trust(tenant, identity, source, keys)

    async def authenticate(self, token: str) -> KeyRecord:
        """Return the record of a token's subject.

        :class:`TokenRefusedError` (401) when it is not to be trusted, ``TokenClaimsError`` (403) when its claims name no
        place here, ``IdentityUnavailableError`` (503) when its issuer's keys cannot be had.
        """
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        found = self._remembered.get(digest)
        if found is not None and found[0] > self._unix_s() and found[1].live:
            return found[2]
        until, trust, record = await self._check(token)
        if len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered.pop(digest, None)
        self._remembered[digest] = until, trust, record
        return record

    def of_run(self, tenant: str, team: str | None, key_id: str) -> KeyRecord:
        """Return the record that a run works for which a token's subject had started; 401 when the tenant trusts nobody.

        A run may outlive the token that started it. It may call models, and no more than that.
        """
        if tenant not in self._by_tenant:
            raise AuthenticationError("The identity that this run works for is not trusted any more.")
        record = KeyRecord(id=key_id, tenant=tenant, team=team or None, digest=b"", role="service")
        return self._same(f"run {key_id}", record)

    async def _check(self, token: str) -> tuple[float, _Trust, KeyRecord]:
        """Return until when to believe the token, whose it is, and the record."""
        header, claims = _parts(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        # Not to be believed yet, but they say whom it is worth asking.
        candidates = [
            trust
            for trust in self._by_issuer.get(str(claims.get("iss")), ())
            if algorithm in trust.identity.algorithms and _is_meant(trust.identity, claims)
        ]
        if not candidates or "crit" in header or not isinstance(kid, str | None):
            raise TokenRefusedError(_UNKNOWN)
        trust = candidates[0]
        key = await trust.keys.find(kid)
        if key.algorithm not in (None, algorithm):
            raise TokenRefusedError("The token's algorithm is not that of its key.")
        verified = _verify(token, key, trust.identity)
        found = record_of(trust.tenant, trust.teams, trust.identity, verified)
        record = self._same(found.id, found)
        return min(float(verified["exp"]), self._unix_s() + BELIEVED_S), trust, record

    def _same(self, name: str, record: KeyRecord) -> KeyRecord:
        """Return the object that already stands for an equal record: plans are kept by object."""
        known = self._subjects.get(name)
        if known == record:
            return known
        if len(self._subjects) >= MAX_REMEMBERED:
            self._subjects.pop(next(iter(self._subjects)))
        self._subjects[name] = record
        return record


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims, neither of them to be believed yet."""
    if len(token) > MAX_CHARACTERS:
        raise TokenRefusedError(f"The token is longer than {MAX_CHARACTERS} characters.")
    header, claims, _ = token.split(".")
    try:
        return _decode(header), _decode(claims)
    except (ValueError, Base64Error, msgspec.MsgspecError) as error:
        raise TokenRefusedError("The token is mangled.") from error


def _decode(part: str) -> dict[str, Any]:
    data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    return msgspec.json.decode(data, type=dict[str, Any])


def _is_meant(identity: Identity, claims: dict[str, Any]) -> bool:
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    return any(name in identity.audience for name in named) and fits(identity, claims)


def _verify(token: str, key: SigningKey, identity: Identity) -> dict[str, Any]:
    """Return the claims of a genuine token for us; about 60 µs with RSA."""
    import jwt

    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=list(identity.algorithms),
            audience=identity.audience,
            issuer=identity.issuer,
            leeway=identity.leeway / 1_000,
            options={"require": ["exp", "sub", "aud", "iss"]},
        )
    except jwt.ExpiredSignatureError as error:
        raise TokenRefusedError("The token has expired.", code="token_expired") from error
    except jwt.InvalidAudienceError as error:
        raise TokenRefusedError(
            "The token is meant for somebody else: its audience is not this gateway's."
        ) from error
    except jwt.ImmatureSignatureError as error:
        raise TokenRefusedError("The token is not valid yet.") from error
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise TokenRefusedError(f"The token is not accepted: {type(error).__name__}.") from error
    return claims
