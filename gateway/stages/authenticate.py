"""Who calls: an API key, or a run's token, resolved in memory; the database is never asked on a call's way."""

from __future__ import annotations

import time

from airi import tokens
from airi.errors import AuthenticationError
from airi.http.server import Request
from airi.identity import is_identity, is_token
from airi.keys import KeyRecord, UnknownKeyError, scopes
from airi.keys.keymap import check_alive
from gateway.exchange import Exchange
from gateway.runtime import Runtime
from observability import tracecontext

_MISSING = (
    "You did not provide an API key. Send it as 'Authorization: Bearer airi_…' "
    "(or 'x-api-key'); `airi key create` makes one."
)


def bearer(request: Request) -> str:
    """Return the token a request carries; raise :class:`AuthenticationError` when there is none."""
    header = request.header(b"authorization")
    if header is not None:
        scheme, _, token = header.partition(b" ")
        if scheme.lower() == b"bearer" and token.strip():
            return token.strip().decode("latin-1")
        raise AuthenticationError("The authorization header must be 'Bearer' and a key.")
    other = request.header(b"x-api-key") or request.header(b"api-key")
    if other is None or not other.strip():
        raise AuthenticationError(_MISSING, code="missing_api_key")
    return other.strip().decode("latin-1")


async def authenticate(runtime: Runtime, exchange: Exchange) -> None:
    """Set the Exchange's key (and run); raise 401 for who is not known, 403 for where the key may not go."""
    request = exchange.request
    since = time.monotonic_ns()
    traceparent = request.header(b"traceparent")
    if traceparent is not None:
        context = tracecontext.parse(traceparent)
        if context is not None:
            exchange.trace_id, exchange.parent_span_id = context.trace_id, context.span_id
            exchange.trace_flags = context.flags
    token = bearer(request)
    if token.startswith(tokens.PREFIX):
        exchange.run = tokens.verify(runtime.keyring, token)
        key = await _key_of_run(runtime, exchange.run)
    else:
        key = await find_key(runtime, token)
    exchange.key = key
    if key.routes or key.cidrs:
        scopes.check(key, route=exchange.operation.path, peer=request.peer)
    how = "run token" if exchange.run is not None else "identity" if is_identity(key.id) else "API key"
    exchange.decide(
        "auth", since, "allowed", how,
        {"role": key.role, "key": key.id, "team": key.team},
    )  # fmt: skip
    exchange.mark("auth")


async def find_key(runtime: Runtime, token: str) -> KeyRecord:
    """Return a token's record; an unknown id is looked for once in the key log (rate limited) before the 401."""
    if is_token(token):
        return await runtime.identities.authenticate(token)
    try:
        return runtime.keys.authenticate(token)
    except UnknownKeyError:
        await runtime.watcher.refresh_keys_for_unknown()
        return runtime.keys.authenticate(token)


async def _key_of_run(runtime: Runtime, claims: tokens.RunClaims) -> KeyRecord:
    if is_identity(claims.key_id):
        return runtime.identities.of_run(claims.tenant, claims.team, claims.key_id)
    record = runtime.keys.get(claims.key_id)
    if record is None:
        await runtime.watcher.refresh_keys_for_unknown()
        record = runtime.keys.get(claims.key_id)
    if record is None or record.tenant != claims.tenant:
        raise AuthenticationError("The key that this run works for does not exist any more.")
    check_alive(record)
    return record
