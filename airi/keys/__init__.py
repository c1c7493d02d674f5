"""API keys: records, the ordered log in SQL, the map in memory, scopes and roles."""

from airi.keys.errors import (
    GrantError,
    InvalidKeyError,
    KeyNotFoundError,
    KeyStateError,
    ScopeError,
    UnknownKeyError,
)
from airi.keys.keymap import KeyMap
from airi.keys.log import KeyLog, NewKey, refresh
from airi.keys.record import KeyBudget, KeyLimits, KeyRecord, Role

__all__ = [
    "GrantError",
    "InvalidKeyError",
    "KeyBudget",
    "KeyLimits",
    "KeyLog",
    "KeyMap",
    "KeyNotFoundError",
    "KeyRecord",
    "KeyStateError",
    "NewKey",
    "Role",
    "ScopeError",
    "UnknownKeyError",
    "refresh",
]
