"""Upstreams of the tests' own: one that records what reaches it, and those of foreign dialects in a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.routing.wire_server import WireServer

Body = dict[str, Any]
ANSWER: Body = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "recorded",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def delta(**fields: Any) -> Body:
    """A chunk with this delta."""
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "recorded",
        "choices": [{"index": 0, "delta": fields, "finish_reason": None}],
    }


def finish(reason: str) -> Body:
    """The chunk that says why the answer ended."""
    chunk = delta()
    chunk["choices"][0]["finish_reason"] = reason
    return chunk


USAGE: Body = {**delta(), "choices": [], "usage": ANSWER["usage"]}


class Recorder:
    """Answers every POST with ``answer(body)``: a body, or a list of chunks for a stream. ``seen`` holds (path, headers, body)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], Body]] = []
        self.answer: Callable[[Body], Body | list[Body | bytes]] = lambda _: ANSWER
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                recorder.seen.append((self.path, headers, body))
                said = recorder.answer(body)
                if isinstance(said, list):
                    events = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in said]
                    data = b"".join(b"data: " + event + b"\n\n" for event in events)
                    kind = "text/event-stream"
                else:
                    data, kind = json.dumps(said).encode(), "application/json"
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    @property
    def last(self) -> Body:
        """The body that came last."""
        return self.seen[-1][2]

    @contextmanager
    def serving(self) -> Iterator[Recorder]:
        """Serve until the end of the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@contextmanager
def serving(*servers: WireServer) -> Iterator[None]:
    """Run Routing's servers of foreign dialects on a loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        yield
    finally:
        for server in servers:
            asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
