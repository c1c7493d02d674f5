"""The adapter for a place that cannot be used from this machine: every call of it fails and says why in the record."""

from __future__ import annotations

from routing.adapters.base import UpstreamResponse
from routing.call import Call
from routing.errors import NotConfigured


class UnusableUpstream:
    """Stands where a secret or a TLS file is missing, so that other targets and fallbacks are tried at once."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    async def send(self, call: Call, model: str, drop: tuple[str, ...], total_ms: int) -> UpstreamResponse:
        """Fail: nothing is sent."""
        raise NotConfigured(self._fault)

    def close(self) -> None:
        """Hold nothing, so there is nothing to close."""
