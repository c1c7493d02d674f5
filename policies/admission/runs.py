"""The cancel flag of a run: once set, no call of that run is admitted any more."""

from __future__ import annotations

import redis as redis_library

from policies.names import prefix

_TTL_MS = 7 * 86_400_000


def cancel_run(redis: redis_library.Redis, tenant: str, run_id: str) -> None:
    """Refuse every later call of a run. The run's own state in SQL stays the truth; the flag lasts seven days, longer
    than any token of the run."""
    redis.set(f"{prefix(tenant)}x:{run_id}", 1, px=_TTL_MS)
