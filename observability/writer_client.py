"""Asking the writer what is running now; for the control plane."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from observability.errors import WriterUnavailableError
from observability.query import TenantScope

if TYPE_CHECKING:
    import httpx

_PATIENCE_S = 2.0


class WriterClient:
    """The writer's HTTP socket. Every question ends within two seconds."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        import httpx  # the control plane's start does not wait for it

        transport = httpx.AsyncHTTPTransport(uds=str(self._socket), limits=httpx.Limits(max_connections=16))
        return httpx.AsyncClient(transport=transport, base_url="http://writer", timeout=_PATIENCE_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, if there are any."""
        if "_http" in self.__dict__:
            await self._http.aclose()

    async def live(self, tenant: TenantScope) -> list[dict[str, Any]]:
        """Return the calls in flight, newest first; raise :class:`WriterUnavailableError` without a writer."""
        params = {"tenant": tenant} if isinstance(tenant, str) else {}
        answer = await self._get("/live", params)
        calls: list[dict[str, Any]] = answer.json()["data"]
        return calls

    async def state(self) -> dict[str, Any]:
        """Return lag, losses, faults and connected processes."""
        state: dict[str, Any] = (await self._get("/state", {})).json()
        return state

    async def metrics(self, accept: str) -> tuple[str, str]:
        """Return Prometheus' page and its content type."""
        answer = await self._get("/metrics", {}, {"accept": accept})
        return answer.text, answer.headers["content-type"]

    async def _get(
        self, path: str, params: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        import httpx

        try:
            answer = await self._http.get(path, params=params, headers=headers)
        except httpx.HTTPError as error:
            raise WriterUnavailableError(
                "The record writer does not answer; calls go on and are recorded when it is back."
            ) from error
        if answer.status_code != 200:
            raise WriterUnavailableError(f"The record writer answered with status {answer.status_code}.")
        return answer
