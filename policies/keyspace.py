"""Finding tenants' keys in Redis, off the hot path."""

from __future__ import annotations

from collections import defaultdict

import redis as redis_library

_LONGEST_S = {"i": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400, "m": 31 * 86_400}
_GRACE_S = 3 * 86_400


def _suffixes(redis: redis_library.Redis, pattern: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for key in redis.scan_iter(match=pattern, count=1_000):
        head, _, suffix = key.decode().partition("}:")
        found[head.removeprefix("airi:{")].add(suffix)
    return found


def money_suffixes(redis: redis_library.Redis) -> dict[str, set[str]]:
    """Return, by tenant, the money hashes there are (``m:LETTER:START``)."""
    return _suffixes(redis, "airi:{*}:m:*")


def user_suffixes(redis: redis_library.Redis) -> dict[str, set[str]]:
    """Return, by tenant, the hashes of end users (``u:USER``)."""
    return _suffixes(redis, "airi:{*}:u:*")


def expires_at_s(suffix: str) -> int:
    """Return when a money hash may be forgotten (Unix seconds; 0: never): three days after its window, or later."""
    _, letter, start = suffix.split(":")
    return 0 if letter == "t" else int(start) + _LONGEST_S[letter] + _GRACE_S
