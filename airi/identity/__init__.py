"""Tokens of an OpenID Connect issuer, taken beside API keys: their keys, their checks, and whom they stand for."""

from airi.identity.errors import IdentityUnavailableError, TokenRefusedError
from airi.identity.live import Identities, is_identity, is_token

__all__ = ["Identities", "IdentityUnavailableError", "TokenRefusedError", "is_identity", "is_token"]
