"""A small upstream that speaks the Responses API: whole and in events, of kinds that no translation knows too."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Body = dict[str, Any]
USAGE: Body = {
    "input_tokens": 40,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 60,
}


def message(text: str, annotations: list[Body] | None = None) -> Body:
    part = {"type": "output_text", "text": text, "annotations": annotations or [], "logprobs": []}
    return {"id": "msg_up", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def call(arguments: str) -> Body:
    return {
        "id": "fc_up", "type": "function_call", "call_id": "call_up", "name": "get_weather", "arguments": arguments,
        "status": "completed",
    }  # fmt: skip


def reasoning(summary: str) -> Body:
    return {
        "id": "rs_up", "type": "reasoning", "summary": [{"type": "summary_text", "text": summary}],
        "encrypted_content": "gAAAA==", "status": "completed",
    }  # fmt: skip


def search(query: str) -> Body:
    return {
        "id": "ws_up", "type": "web_search_call", "status": "completed",
        "action": {"type": "search", "query": query},
    }  # fmt: skip


def response(body: Body, output: list[Body], status: str = "completed", **more: Any) -> Body:
    usage = USAGE if status in ("completed", "incomplete") else None
    return {
        "id": "resp_up", "object": "response", "created_at": 1, "status": status, "error": None, "incomplete_details": None,
        "instructions": body.get("instructions"), "max_output_tokens": body.get("max_output_tokens"), "metadata": {},
        "model": body["model"], "output": output, "parallel_tool_calls": True, "previous_response_id": None, "store": body.get("store"),
        "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": body.get("tools", []), "top_p": 1.0,
        "truncation": "disabled", "usage": usage, "of_the_future": {"kept": True}, **more,
    }  # fmt: skip


def events_of(body: Body, output: list[Body], ending: str, size: int) -> Iterator[Body]:
    """Yield the events of a stream without their numbers; texts come in pieces of ``size`` characters."""
    yield {"type": "response.created", "response": response(body, [], "in_progress")}
    yield {"type": "response.in_progress", "response": response(body, [], "in_progress")}
    for index, item in enumerate(output):
        yield from _item(index, item, size)
    yield {"type": "response.of_the_future", "said": "no text of the model's"}
    if ending == "error":
        yield {"type": "error", "code": "server_error", "message": "the engine broke", "param": None}
    elif ending == "failed":
        error = {"code": "server_error", "message": "the engine broke"}
        yield {"type": "response.failed", "response": response(body, output, "failed", error=error)}
    elif ending == "incomplete":
        why = {"reason": "max_output_tokens"}
        yield {
            "type": "response.incomplete",
            "response": response(body, output, ending, incomplete_details=why),
        }
    elif ending == "completed":
        yield {"type": "response.completed", "response": response(body, output)}


def _item(index: int, item: Body, size: int) -> Iterator[Body]:
    place = {"item_id": item["id"], "output_index": index}
    empty = {
        **item, "status": "in_progress",
        **{name: "" if name == "arguments" else [] for name in ("content", "arguments", "summary") if name in item},
    }  # fmt: skip
    yield {"type": "response.output_item.added", "output_index": index, "item": empty}
    for number, part in enumerate(item.get("content", ())):
        there = {**place, "content_index": number}
        bare = {**part, "text": "", "annotations": [], "logprobs": []}
        yield {"type": "response.content_part.added", **there, "part": bare}
        for piece in _cut(part["text"], size):
            yield {
                "type": "response.output_text.delta",
                **there,
                "delta": piece,
                "logprobs": [],
                "obfuscation": "x7",
            }
        for annotation_index, annotation in enumerate(part["annotations"]):
            yield {
                "type": "response.output_text.annotation.added", **there, "annotation_index": annotation_index,
                "annotation": annotation,
            }  # fmt: skip
        yield {"type": "response.output_text.done", **there, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **there, "part": part}
    for number, part in enumerate(item.get("summary", ())):
        there = {**place, "summary_index": number}
        yield {"type": "response.reasoning_summary_part.added", **there, "part": {**part, "text": ""}}
        for piece in _cut(part["text"], size):
            yield {"type": "response.reasoning_summary_text.delta", **there, "delta": piece}
        yield {"type": "response.reasoning_summary_text.done", **there, "text": part["text"]}
        yield {"type": "response.reasoning_summary_part.done", **there, "part": part}
    if "arguments" in item:
        for piece in _cut(item["arguments"], size):
            yield {"type": "response.function_call_arguments.delta", **place, "delta": piece}
        yield {
            "type": "response.function_call_arguments.done", **place, "name": item["name"],
            "arguments": item["arguments"],
        }  # fmt: skip
    if item["type"] == "web_search_call":
        for state in ("in_progress", "searching", "completed"):
            yield {"type": f"response.web_search_call.{state}", **place}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def wire(events: Iterator[Body]) -> Iterator[bytes]:
    """Number the events and write them as they stand in a stream."""
    for number, event in enumerate(events):
        data = json.dumps({**event, "sequence_number": number})
        yield f"event: {event['type']}\ndata: {data}\n\n".encode()


class ResponsesServer:
    """Answers ``POST /v1/responses`` with ``output``; ``seen`` holds the bodies. Any other path is a 404."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seen: list[Body] = []
        self.output: list[Body] = [message("Yes.")]
        self.status = 200
        self.ending: Literal["completed", "incomplete", "failed", "error", "cut"] = "completed"
        self.size = 3
        self.hold = False
        self.left = threading.Event()

    @property
    def last(self) -> Body:
        return self.seen[-1]

    @contextmanager
    def serving(self) -> Iterator[Self]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def _handler(server: ResponsesServer) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.seen.append(body)
            if not self.path.endswith("/v1/responses"):
                self._whole(
                    404, {"error": {"message": f"no {self.path} here", "type": "invalid_request_error"}}
                )
            elif server.status != 200:
                self._whole(
                    server.status, {"error": {"message": "the engine is ill", "type": "server_error"}}
                )
            elif body.get("stream"):
                self._stream(body)
            else:
                self._whole(200, response(body, server.output))

        def _whole(self, status: int, answer: Body) -> None:
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, body: Body) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            try:
                for number, event in enumerate(
                    wire(events_of(body, server.output, server.ending, server.size))
                ):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
                    if server.hold and number == 6:
                        self._wait_for_leaving()
                        return
            except ConnectionError:  # the caller may leave before the last event that it is sent
                server.left.set()
                self.close_connection = True
                return
            if server.ending != "cut":
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True

        def _wait_for_leaving(self) -> None:
            self.close_connection = True
            self.connection.settimeout(10)
            with contextlib.suppress(TimeoutError):  # nobody left
                if not self.connection.recv(1):
                    server.left.set()

        def log_message(self, *_: Any) -> None:
            return

    return Handler
