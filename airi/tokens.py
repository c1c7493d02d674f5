"""Run tokens: what a worker shows at the gateway's door while it holds a step's lease.

``airirun_`` and the base64url of signature and claims (MessagePack). Minted per lease, never stored, dead with its expiry, its key or
its run: the gateway checks the signature and the expiry here, and that key and run are alive elsewhere.
"""

from __future__ import annotations

import base64
from binascii import Error as Base64Error

import msgspec

from airi.clock import unix_ms
from airi.errors import AuthenticationError
from airi.keyring import SIGNATURE_BYTES, KeyRing

PREFIX = "airirun_"
_PURPOSE = "run token"
_MAX_CHARACTERS = 2_048


class RunClaims(msgspec.Struct, frozen=True, array_like=True):
    """Who calls (tenant, team, key), for which step of which run, with how much money, until when."""

    tenant: str
    team: str | None
    key_id: str
    run_id: str
    step: str
    budget_usd_micros: int | None
    expires_at_ms: int


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(RunClaims)


def mint(ring: KeyRing, claims: RunClaims) -> str:
    """Return the token of ``claims``."""
    data = _ENCODER.encode(claims)
    return PREFIX + base64.urlsafe_b64encode(ring.sign(data, _PURPOSE) + data).rstrip(b"=").decode()


def verify(ring: KeyRing, token: str, now_ms: int | None = None) -> RunClaims:
    """Return the claims; :class:`AuthenticationError` when the token is forged, mangled or expired."""
    if not token.startswith(PREFIX) or len(token) > _MAX_CHARACTERS:
        raise AuthenticationError("this is not a run token")
    text = token[len(PREFIX) :]
    try:
        signed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, Base64Error) as error:
        raise AuthenticationError("the run token is mangled") from error
    data = signed[SIGNATURE_BYTES:]
    if not ring.verify(data, signed[:SIGNATURE_BYTES], _PURPOSE):
        raise AuthenticationError("the run token's signature is wrong")
    try:
        claims = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise AuthenticationError("the run token belongs to another release of AIRI") from error
    if claims.expires_at_ms <= (unix_ms() if now_ms is None else now_ms):
        raise AuthenticationError("the run token has expired; the step's lease must be renewed")
    return claims
