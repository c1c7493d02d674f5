"""The way from the gateway's address to the control plane: bytes over a unix socket, streams included."""

from __future__ import annotations

import asyncio

from airi.errors import UnavailableError
from airi.http.client import HttpPool, Response
from airi.http.errors import HttpClientError
from airi.http.headers import HOP_BY_HOP
from airi.http.server import Request

# Said by the gateway alone; what a caller claims in them is dropped.
_SAID_HERE = {b"x-forwarded-for", b"x-forwarded-host", b"x-request-id"}
_NOT_FORWARDED = HOP_BY_HOP | {b"content-length", b"expect"} | _SAID_HERE
PREFIXES = (
    "/admin/",
    "/ui",
    "/v1/workflows",
    "/v1/runs",
    "/v1/responses/",
    "/v1/messages/",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/mcp",
)
_FIRST_BYTE_MS = 60_000
_IDLE_MS = 120_000
_TOTAL_MS = 86_400_000


def is_control_path(path: str) -> bool:
    """Return whether the control plane answers this path."""
    return path == "/" or any(path == prefix.rstrip("/") or path.startswith(prefix) for prefix in PREFIXES)


class ControlProxy:
    """Forwards requests to the control plane as they are, less hop-by-hop headers, with the caller's address."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    async def forward(self, request: Request, request_id: str) -> None:
        """Answer ``request`` with what the control plane says; raise :class:`UnavailableError` when it is away."""
        headers = [pair for pair in request.headers if pair[0] not in _NOT_FORWARDED]
        headers.append((b"x-forwarded-for", request.peer.encode()))
        headers.append((b"x-forwarded-host", request.header(b"host") or b""))
        headers.append((b"x-request-id", request_id.encode()))
        target = request.path + ("?" + request.query.decode("latin-1") if request.query else "")
        try:
            response = await self._pool.send(
                request.method.encode(), target.encode("latin-1"), headers, request.body,
                first_byte_ms=_FIRST_BYTE_MS, idle_ms=_IDLE_MS, total_ms=_TOTAL_MS,
            )  # fmt: skip
        except HttpClientError as error:
            raise UnavailableError(
                "The control plane is not answering; model calls are served meanwhile.", retry_after_ms=1_000
            ) from error
        try:
            await self._relay(request, response, request_id)
        finally:
            response.close()

    @staticmethod
    async def _relay(request: Request, response: Response, request_id: str) -> None:
        out = [pair for pair in response.headers if pair[0] not in _NOT_FORWARDED]
        out.append((b"x-request-id", request_id.encode()))
        if response.header(b"content-length") is not None or request.method == "HEAD":
            request.respond(response.status, out, await response.read(64 << 20))
            return
        request.start(response.status, out)
        while (block := await response.next_block()) is not None:
            request.write(block)
            await request.drain()
        request.finish()


async def reachable(pool: HttpPool) -> bool:
    """Return whether the control plane answers its health route within a second."""
    try:
        response = await asyncio.wait_for(
            pool.send(
                b"GET",
                b"/healthz",
                [(b"host", b"control")],
                b"",
                first_byte_ms=1_000,
                idle_ms=1_000,
                total_ms=1_000,
            ),
            1.5,
        )
    except (HttpClientError, TimeoutError):
        return False
    response.close()
    return response.status == 200
