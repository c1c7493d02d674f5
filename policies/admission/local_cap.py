"""What may pass while Redis is away: per tenant and process, a GCRA of requests a minute; bounded in memory."""

from __future__ import annotations

from collections import OrderedDict

_TENANTS = 4_096


class LocalCap:
    """At most ``per_minute`` calls a minute of a tenant (less when its own limits, shared by ``processes``, are less)."""

    def __init__(self, per_minute: int, processes: int) -> None:
        self._per_minute = per_minute
        self._processes = max(1, processes)
        self._lines: OrderedDict[str, float] = OrderedDict()

    def allow(self, tenant: str, limit_per_minute: int | None, now: float) -> float:
        """Return 0 when the call may pass, else the seconds to wait. ``now`` is monotonic, in seconds."""
        limit = self._per_minute
        if limit_per_minute is not None:
            limit = min(limit, max(1, limit_per_minute // self._processes))
        line = max(self._lines.get(tenant, now), now) + 60 / limit
        if line - now > 60:
            return line - now - 60
        self._lines[tenant] = line
        self._lines.move_to_end(tenant)
        if len(self._lines) > _TENANTS:
            self._lines.popitem(last=False)
        return 0.0
