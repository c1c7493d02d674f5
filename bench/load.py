"""A load generator: closed loop or open loop, whole answers or streams; prints one JSON line.

    python -m bench.load closed PORT --connections 64 --seconds 5 --body FILE --key KEY
    python -m bench.load open   PORT --connections 64 --seconds 5 --body FILE --key KEY --rate 1000

Open loop latencies count from the *intended* send time, so a stall is charged to the one who stalls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop


class Totals:
    """What a run has seen. Latencies in microseconds."""

    def __init__(self) -> None:
        self.calls = 0
        self.errors = 0
        self.events = 0
        self.first_error = ""
        self.latencies_us: list[int] = []
        self.ttft_us: list[int] = []


class Client(asyncio.Protocol):
    """One connection: sends the request, reads the whole answer, says so."""

    def __init__(
        self, request: bytes, totals: Totals, free: asyncio.Queue[Client] | None, stop_at: float
    ) -> None:
        self.request = request
        self.totals = totals
        self.free = free
        self.stop_at = stop_at
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.since = 0.0
        self.need = -1
        self.have = 0
        self.status = 0
        self.tail = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if self.free is None:
            self.send(time.perf_counter())

    def send(self, since: float) -> None:
        self.since = since
        self.need, self.have, self.status, self.tail = -1, 0, 0, b""
        self.busy = True
        self.transport.write(self.request)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.busy:
            self.totals.errors += 1
            self.totals.first_error = self.totals.first_error or "connection lost"
        if not self.done.done():
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self.status == 0:
            data = self.head(data)
            if data is None:
                return
        if self.need >= 0:
            self.have += len(data)
            if self.have >= self.need:
                self.finish(data)
            return
        self.totals.events += data.count(b"data: ")
        self.tail = (self.tail + data)[-7:]
        if self.tail.endswith(b"0\r\n\r\n"):
            self.finish(data)

    def head(self, data: bytes) -> bytes | None:
        data = self.tail + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.tail = data
            return None
        self.tail = b""
        self.status = int(data[9:12])
        head = data[:end].lower()
        at = head.find(b"\r\ncontent-length: ")
        if at >= 0:
            self.need = int(head[at + 18 :].split(b"\r\n", 1)[0])
        else:
            self.totals.ttft_us.append(round((time.perf_counter() - self.since) * 1e6))
        return data[end + 4 :]

    def finish(self, data: bytes) -> None:
        now = time.perf_counter()
        totals = self.totals
        self.busy = False
        if self.status == 200:
            totals.calls += 1
            totals.latencies_us.append(round((now - self.since) * 1e6))
        else:
            totals.errors += 1
            totals.first_error = totals.first_error or f"{self.status} {data[:300]!r}"
        if self.free is not None:
            self.free.put_nowait(self)
        elif now < self.stop_at:
            self.send(now)
        else:
            self.transport.close()


async def closed(port: int, connections: int, seconds: float, request: bytes, totals: Totals) -> None:
    """Each connection sends as soon as it has its answer."""
    loop = asyncio.get_running_loop()
    stop_at = time.perf_counter() + seconds
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: Client(request, totals, None, stop_at), "127.0.0.1", port
        )
        clients.append(client)
    await asyncio.wait_for(asyncio.gather(*(client.done for client in clients)), seconds + 60)


async def paced(
    port: int, connections: int, seconds: float, requests: list[bytes], totals: Totals, rate: float
) -> None:
    """Calls leave at a fixed rate on whichever connection is free, each the next of ``requests``."""
    loop = asyncio.get_running_loop()
    free: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: Client(requests[0], totals, free, 0), "127.0.0.1", port
        )
        free.put_nowait(client)
    start = time.perf_counter() + 0.05
    for number in range(int(rate * seconds)):
        intended = start + number / rate
        wait = intended - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        client = await asyncio.wait_for(free.get(), 30)
        client.request = requests[number % len(requests)]
        client.send(intended)
    for _ in range(connections):
        await asyncio.wait_for(free.get(), 30)


def percentile(values: list[int], share: float) -> int:
    """Return the nearest-rank percentile; 0 of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0


def make_request(port: int, path: str, key: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """Return the bytes of one call."""
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        + "".join(f"{header}\r\n" for header in headers)
        + f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["closed", "open"])
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument(
        "--keys", type=Path, help="a file of keys, one a line, for open loops: each call takes the next"
    )
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--header", action="append", default=[], help="NAME: VALUE, sent with each call")
    parser.add_argument("--rate", type=float, default=1_000)
    arguments = parser.parse_args()
    totals = Totals()
    names = arguments.keys.read_text().split() if arguments.keys else [arguments.key]
    body = arguments.body.read_bytes()
    requests = [make_request(arguments.port, arguments.path, name, body, arguments.header) for name in names]
    began = time.perf_counter()
    if arguments.mode == "closed":
        uvloop.run(closed(arguments.port, arguments.connections, arguments.seconds, requests[0], totals))
    else:
        uvloop.run(
            paced(arguments.port, arguments.connections, arguments.seconds, requests, totals, arguments.rate)
        )
    took = time.perf_counter() - began
    print(
        json.dumps(
            {
                "calls": totals.calls, "errors": totals.errors, "first_error": totals.first_error,
                "events": totals.events, "seconds": round(took, 3), "rps": round(totals.calls / took, 1),
                "p50_us": percentile(totals.latencies_us, 0.5), "p99_us": percentile(totals.latencies_us, 0.99),
                "ttft_p50_us": percentile(totals.ttft_us, 0.5), "ttft_p99_us": percentile(totals.ttft_us, 0.99),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
