"""A server and a client that only forward: what the two ends of HTTP cost before AIRI does anything.

``python bench/bare_forwarder.py PORT UPSTREAM_PORT`` listens on 127.0.0.1 and passes each request on, bodies
as they are, streams as they come. ``make bench`` states AIRI's cost as a ratio to it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import uvloop

from airi.http.client import ClientOptions, HttpPool
from airi.http.headers import end_to_end
from airi.http.server import Request, serve


async def main(port: int, upstream: int) -> None:
    """Forward until SIGTERM."""
    pool = HttpPool(f"http://127.0.0.1:{upstream}", options=ClientOptions(max_connections=2048))

    async def forward(request: Request) -> None:
        response = await pool.send(
            request.method.encode(),
            request.path.encode(),
            request.headers,
            request.body,
            first_byte_ms=60_000,
            idle_ms=60_000,
        )
        try:
            if response.header(b"transfer-encoding") is None:
                body = await response.read(1 << 24)
                request.respond(response.status, response.headers, body)
                return
            request.start(response.status, end_to_end(response.headers))
            while (block := await response.next_block()) is not None:
                request.write(block)
                await request.drain()
            request.finish()
        finally:
            response.close()

    server = await serve(forward, host="127.0.0.1", port=port)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ready = os.environ.get("AIRI_READY_FD")
    if ready:
        os.write(int(ready), b"READY\n")
    await stop.wait()
    await server.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
