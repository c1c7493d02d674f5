"""A tool server that remembers every call by its key: the witness of what workers really did.

``python -m tests.agents.witness --log FILE [--port N]`` prints its port and serves:
``POST /keyed`` (applies a key once, repeats its answer), ``POST /unsafe`` (applies every call), ``GET /calls``.
A request whose body was cut off is not applied: a worker can die between the two.
A body may hold ``delay_ms``: the call is applied, then the answer is late; or ``hold``: the answer to the call that was
applied waits for :attr:`Witness.release`. Each call is one line of the log, written
before the answer, so that it survives the witness too.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Witness:
    """What happened."""

    def __init__(self, log: Path | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.lock = threading.Lock()
        self.release = threading.Event()
        self.log = log.open("a") if log else None

    def saw(self, kind: str, key: str, body: dict[str, Any]) -> tuple[bool, Any]:
        """Record a call; return whether it was applied, and the answer."""
        with self.lock:
            applied = kind != "keyed" or key not in self.answers
            call = {"key": key, "kind": kind, "applied": applied, "at": time.time(), "body": body}
            self.calls.append(call)
            if self.log:
                self.log.write(json.dumps(call) + "\n")
                self.log.flush()
            if applied:
                self.answers[key] = {"n": len(self.answers), "echo": body.get("echo")}
            return applied, self.answers[key]

    def applied(self) -> Counter[str]:
        """How often each key was applied."""
        return Counter(call["key"] for call in self.calls if call["applied"])

    def called(self) -> Counter[str]:
        """How often each key was called."""
        return Counter(call["key"] for call in self.calls)


def make_server(witness: Witness, port: int = 0) -> ThreadingHTTPServer:
    """A server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            data = self.rfile.read(length)
            if (
                len(data) < length
            ):  # the caller was killed between its header and its body: nothing was asked for
                self.close_connection = True
                return
            body = json.loads(data or b"{}")
            applied, answer = witness.saw(self.path.strip("/"), self.headers.get("idempotency-key", ""), body)
            time.sleep(body.get("delay_ms", 0) / 1000)
            if body.get("hold") and applied:
                witness.release.wait(60)
            self.answer(answer)

        def do_GET(self) -> None:
            with witness.lock:
                self.answer(list(witness.calls))

        def answer(self, value: Any) -> None:
            data = json.dumps(value).encode()
            try:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the caller was killed: that is what this is for

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    return Server(("127.0.0.1", port), Handler)


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    """Serve in a thread; yields the address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    server = make_server(Witness(options.log), options.port)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
