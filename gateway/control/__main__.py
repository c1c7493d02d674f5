"""The control plane's process: ``python -m gateway.control``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from airi.logs import configure
from airi.settings import Settings
from airi.up.ready import notify_ready
from gateway.control.app import create


class _Server(uvicorn.Server):
    """uvicorn that says when it listens; it leaves by SIGTERM after its running requests."""

    async def startup(self, *args: Any, **kwargs: Any) -> None:
        await super().startup(*args, **kwargs)
        if self.started:
            notify_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End by SIGTERM with status 0: uvicorn's own way raises the signal again once all is done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def _serve(settings: Settings) -> None:
    app = create(settings)
    settings.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.control_socket.unlink(missing_ok=True)
    config = uvicorn.Config(
        app, uds=str(settings.control_socket), log_config=None, access_log=False, lifespan="on",
        timeout_graceful_shutdown=10, server_header=False, loop="asyncio", http="httptools", ws="none",
    )  # fmt: skip
    async with _admin_listener(settings, app):
        await _Server(config).serve()


@contextlib.asynccontextmanager
async def _admin_listener(settings: Settings, app: FastAPI) -> AsyncIterator[None]:
    """Listen on AIRI_ADMIN_PORT too, when it is set; the same application, its lifespan run once."""
    if settings.admin_port is None:
        yield
        return
    config = uvicorn.Config(
        app, host=settings.host, port=settings.admin_port, log_config=None, access_log=False, lifespan="off",
        server_header=False, http="httptools", ws="none",
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # the other listens
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task


def main() -> int:
    """Serve until SIGTERM."""
    configure("control")
    asyncio.run(_serve(Settings.from_environment()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
