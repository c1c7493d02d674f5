"""Sign-in sessions of the dashboard: a signed cookie, bound to the key that signed in, and CSRF tokens bound to it.

The cookie holds no secret and no right of its own: each request looks its key up again, so that a revoked, expired or
rotated key ends its sessions at once.
"""

from __future__ import annotations

import base64
import hmac
import os
from binascii import Error as Base64Error

import msgspec

from airi.clock import unix_ms
from airi.keyring import SIGNATURE_BYTES, KeyRing

COOKIE = "airi_session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf_token"
LIFETIME_MS = 12 * 3_600_000
_SESSION = "session"
_BINDING = "session binding"
_CSRF = "csrf"
_MAX_CHARACTERS = 1_024


class Session(msgspec.Struct, frozen=True, array_like=True):
    """Who signed in: ``key_id`` is ``None`` for the administrator. ``binding`` changes with the key's secret."""

    key_id: str | None
    binding: bytes
    expires_at_ms: int
    nonce: bytes


_DECODER = msgspec.msgpack.Decoder(Session)


def bind(ring: KeyRing, secret: bytes) -> bytes:
    """Return what ties a session to the present secret of its key (or that secret's digest)."""
    return ring.sign(secret, _BINDING)


def make(ring: KeyRing, key_id: str | None, secret: bytes) -> str:
    """Return the cookie's value."""
    session = Session(key_id, bind(ring, secret), unix_ms() + LIFETIME_MS, os.urandom(12))
    data = msgspec.msgpack.encode(session)
    return base64.urlsafe_b64encode(ring.sign(data, _SESSION) + data).decode()


def read(ring: KeyRing, cookie: str) -> Session | None:
    """Return the session, or ``None`` when the cookie is forged, mangled or expired."""
    if len(cookie) > _MAX_CHARACTERS:
        return None
    try:
        signed = base64.b64decode(cookie, altchars=b"-_", validate=True)
        data = signed[SIGNATURE_BYTES:]
        if not ring.verify(data, signed[:SIGNATURE_BYTES], _SESSION):
            return None
        session = _DECODER.decode(data)
    except (ValueError, Base64Error, msgspec.DecodeError):
        return None
    return session if session.expires_at_ms > unix_ms() else None


def bound(ring: KeyRing, session: Session, secret: bytes) -> bool:
    """Whether the session was made with this very secret."""
    return ring.verify(secret, session.binding, _BINDING)


def csrf_token(ring: KeyRing, cookie: str) -> str:
    """Return the token that writes within this session must carry."""
    return ring.sign(cookie.encode(), _CSRF).hex()


def csrf_valid(ring: KeyRing, cookie: str, token: str) -> bool:
    """Whether ``token`` belongs to the session of ``cookie``."""
    try:
        return ring.verify(cookie.encode(), bytes.fromhex(token), _CSRF)
    except ValueError:
        return False


def same_text(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())
