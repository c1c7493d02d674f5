"""A client that leaves ends the upstream's work within 100 ms, wherever its call is; calls beyond the bound are told at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.live import Live, free_port, wait_until

pytestmark = pytest.mark.integration
WITHIN_S = 0.1
TRIES = 3
"""A busy machine may be late by itself; it is not late three times."""
CHUNK = b'data: {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NOTHING = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
FAILURE = b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}"
BOUND = 8


class Upstream:
    """Takes calls and never ends one. ``first`` are the bytes that the first calls are answered with; the rest is silence."""

    def __init__(self, *first: bytes, silent_from_the_start: bool = False) -> None:
        self.first = list(first)
        self.deaf = silent_from_the_start
        self.arrived = 0
        self.closed: asyncio.Queue[float] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while self.deaf or await self._call(reader, writer):
                if self.deaf:
                    await reader.readexactly(1)  # the greeting of TLS
                    self.arrived += 1
                    break
            while await reader.read(4_096):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.put_nowait(time.perf_counter())
            writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a call and answer it; whether another may come on this connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if head.startswith(b"get "):  # is anybody there?
            writer.write(NOTHING)
            return True
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        self.arrived += 1
        said = self.first.pop(0) if self.first else b""
        writer.write(said)
        return said is FAILURE


@asynccontextmanager
async def serving(upstream: Upstream, port: int) -> AsyncIterator[None]:
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()


@pytest.fixture(scope="module")
def ports(live: Live) -> dict[str, int]:
    """One upstream address a kind of provider: plain, behind TLS, and a pool that takes one call at a time."""
    found = {kind: free_port() for kind in ("plain", "tls", "narrow")}
    with live.admin() as admin:
        for kind, port in found.items():
            scheme = "https" if kind == "tls" else "http"
            place = {"metadata": {"name": f"leaving-{kind}"}}
            if kind == "narrow":
                replicas = [{"name": "only", "url": f"http://127.0.0.1:{port}"}]
                more = {"engine": "openai", "replicas": replicas, "concurrency_per_replica": 1}
                made = admin.post("/admin/v1/pools", json={**place, **more})
                target = {"pool": "leaving-narrow", "model": "m"}
            else:
                made = admin.post(
                    "/admin/v1/providers", json={**place, "base_url": f"{scheme}://127.0.0.1:{port}/v1"}
                )
                target = {"provider": f"leaving-{kind}", "model": "m"}
            assert made.status_code == 201, made.text
            retries = {"max_attempts": 2, "initial": 1, "max": 1}
            model = {
                **place,
                "price": {"input": 1, "output": 2},
                "versions": [{"name": "v1", "targets": [target]}],
                "retries": retries,
            }
            made = admin.post("/admin/v1/models", json=model)
            assert made.status_code == 201, made.text
    with live.client() as client:
        for kind in found:
            wait_until(lambda kind=kind: client.get(f"/v1/models/leaving-{kind}").status_code == 200)
    return found


async def call(live: Live, kind: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a stream's call and read nothing of it."""
    body = json.dumps(
        {"model": f"leaving-{kind}", "messages": [{"role": "user", "content": "x"}], "stream": True}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {live.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return reader, writer


async def until(check, seconds: float = 10) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("phase", ["connecting", "waiting", "streaming", "retrying"])
async def test_a_client_that_leaves_ends_the_upstreams_work(
    live: Live, ports: dict[str, int], phase: str
) -> None:
    kind = "tls" if phase == "connecting" else "plain"
    block = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
    took = []
    while len(took) < TRIES and min(took, default=1.0) >= WITHIN_S:
        first = {"streaming": (STREAM + block,), "retrying": (FAILURE,)}.get(phase, ())
        upstream = Upstream(*first, silent_from_the_start=kind == "tls")
        async with serving(upstream, ports[kind]):
            reader, writer = await call(live, kind)
            if phase == "streaming":
                await asyncio.wait_for(reader.readuntil(CHUNK), 10)
            wanted = 2 if phase == "retrying" else 1
            await until(lambda upstream=upstream, wanted=wanted: upstream.arrived == wanted)
            while not upstream.closed.empty():  # a connection that the first attempt had ended with
                upstream.closed.get_nowait()
            left = time.perf_counter()
            writer.transport.abort()
            took.append(await asyncio.wait_for(upstream.closed.get(), 5) - left)
    assert min(took) < WITHIN_S, took


async def test_a_client_that_leaves_the_queue_is_never_sent_upstream(
    live: Live, ports: dict[str, int]
) -> None:
    def waiting() -> bool:
        with live.admin() as admin:
            page = admin.get("/metrics").text
        return any(
            "pool_waiting" in line and "leaving-narrow" in line and line.endswith(" 1")
            for line in page.split("\n")
        )

    upstream = Upstream()
    async with serving(upstream, ports["narrow"]):
        _, holding = await call(live, "narrow")
        await until(lambda: upstream.arrived == 1)
        _, queued = await call(live, "narrow")
        await asyncio.to_thread(wait_until, waiting)
        queued.transport.abort()
        _, last = await call(live, "narrow")
        holding.transport.abort()
        await until(lambda: upstream.arrived == 2)
        last.transport.abort()
        await asyncio.wait_for(upstream.closed.get(), 5)
        await asyncio.wait_for(upstream.closed.get(), 5)
        assert upstream.arrived == 2, "the one that left would have been the third"


async def test_calls_beyond_the_bound_are_told_at_once(short_tmp: Path) -> None:
    upstream, port = Upstream(), free_port()
    config = f"""
apiVersion: airi/v1alpha1
kind: Provider
metadata: {{name: leaving-plain}}
base_url: http://127.0.0.1:{port}/v1
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: leaving-plain}}
price: {{input: 1, output: 2}}
versions: [{{name: v1, targets: [{{provider: leaving-plain, model: m}}]}}]
"""
    busy = Live(short_tmp / "bounded", config, AIRI_MAX_CALLS=str(BOUND))
    await asyncio.to_thread(busy.start)
    try:
        async with serving(upstream, port):
            holding = [(await call(busy, "plain"))[1] for _ in range(BOUND)]
            await until(lambda: upstream.arrived == BOUND)
            async with httpx.AsyncClient(base_url=busy.base, trust_env=False) as client:
                for _ in range(3):
                    answer = await client.post(
                        "/v1/chat/completions", json={"model": "leaving-plain", "messages": []}
                    )
                    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
                    assert int(answer.headers["retry-after"]) >= 1
                assert (await client.get("/healthz")).status_code == 200
            for writer in holding:
                writer.transport.abort()
            for _ in holding:
                await asyncio.wait_for(upstream.closed.get(), 5)
            _, again = await call(busy, "plain")
            await until(lambda: upstream.arrived == BOUND + 1)
            again.transport.abort()
    finally:
        await asyncio.to_thread(busy.stop)
