"""Errors of tokens."""

from __future__ import annotations

from airi.errors import AuthenticationError, PermissionDeniedError, UnavailableError


class TokenRefusedError(AuthenticationError):
    """The token is malformed, forged, expired, or of nobody whom a tenant trusts; the message says which."""

    code = "invalid_token"


class TokenClaimsError(PermissionDeniedError):
    """The token is genuine, but its claims name no place for it here."""

    code = "token_not_mapped"


class IdentityUnavailableError(UnavailableError):
    """The issuer's keys are not to be had, so that the token can be neither taken nor refused."""

    code = "identity_unavailable"
