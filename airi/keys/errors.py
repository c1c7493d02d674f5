"""Errors of API keys."""

from __future__ import annotations

from airi.errors import AuthenticationError, ConflictError, NotFoundError, PermissionDeniedError


class InvalidKeyError(AuthenticationError):
    """The presented key is malformed, has a wrong secret, is revoked or has expired."""


class UnknownKeyError(AuthenticationError):
    """No key of this id is in the map yet: worth one rate-limited refresh before it becomes a 401."""


class KeyNotFoundError(NotFoundError):
    """There is no key of this id, or the caller may not see it."""


class KeyStateError(ConflictError):
    """The key is revoked, or has too many secrets in overlap."""


class ScopeError(PermissionDeniedError):
    """The key may not call this model, this route, or from this address."""


class GrantError(PermissionDeniedError):
    """Somebody tried to grant what they do not hold."""
