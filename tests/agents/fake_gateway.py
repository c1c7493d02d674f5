"""A gateway's double: speaks chat completions, checks run tokens, replays idempotent calls, counts what it did."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from airi.keyring import KeyRing
from airi.tokens import RunClaims, verify


class FakeGateway:
    """Models by name: ``echo``, ``json`` (``answers`` in turn), ``tooler`` (calls each tool once, then answers)."""

    def __init__(self, ring: KeyRing, *, cost: int = 100, delay_s: float = 0.0) -> None:
        self.ring = ring
        self.cost = cost
        self.delay_s = delay_s
        self.min_grant = 0
        """A grant below this is refused, as a real gateway refuses what it cannot pay for."""
        self.failures: deque[tuple[int, dict[str, str], dict[str, Any]]] = deque()
        self.answers: deque[str] = deque()
        self.requests: list[tuple[str, dict[str, Any], RunClaims, dict[str, str]]] = []
        self.served: Counter[str] = Counter()
        self.replays = 0
        self.spent = 0
        self.done: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def handle(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        claims = verify(self.ring, headers["authorization"].removeprefix("Bearer "))
        key = headers["idempotency-key"]
        with self.lock:
            self.requests.append((key, body, claims, headers))
            if self.failures:
                status, more, error = self.failures.popleft()
                return status, more, json.dumps({"error": error}).encode()
            if key in self.done:
                self.replays += 1
                return 200, {"x-airi-cost-usd-micros": str(self.cost)}, self.done[key]
            if claims.budget_usd_micros is not None and claims.budget_usd_micros < max(
                self.cost, self.min_grant
            ):
                return 429, {}, b'{"error": {"code": "run_budget_exceeded", "message": "too small"}}'
        time.sleep(self.delay_s)
        data = json.dumps(self.completion(body)).encode()
        with self.lock:
            self.served[key] += 1
            self.spent += self.cost
            self.done[key] = data
        return 200, {"x-airi-cost-usd-micros": str(self.cost), "x-airi-model": f"{body['model']}@1"}, data

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": str(body["messages"][-1].get("content"))}
        if body["model"] == "json":
            with self.lock:
                message["content"] = self.answers.popleft()
        done = sum(1 for item in body["messages"] if item["role"] == "tool")
        tools = body.get("tools", [])
        if body["model"] == "tooler" and done < len(tools) and body.get("tool_choice") != "none":
            function = tools[done]["function"]
            arguments = dict.fromkeys(function["parameters"].get("required", []), 3)
            call = {
                "id": f"c{done}",
                "type": "function",
                "function": {"name": function["name"], "arguments": json.dumps(arguments)},
            }
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
            "model": body["model"],
        }


def make_server(gateway: FakeGateway) -> ThreadingHTTPServer:
    """A server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more, data = gateway.handle(headers, body)
            try:
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    return Server(("127.0.0.1", 0), Handler)
