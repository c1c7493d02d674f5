"""A small real HTTP server that speaks Anthropic's /v1/messages: plain, streamed, with tools, and its errors."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class AnthropicServer:
    """Answers by the model's name: ``claude-tools``, ``claude-429``, ``claude-stall``, ``claude-cut``, ``claude-…``."""

    seen: list[Seen] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def __aenter__(self) -> AnthropicServer:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
                self.seen.append(Seen(first.split(" ")[1], headers, body))
                if not await self._answer(body, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnected.set()
        finally:
            writer.close()

    async def _answer(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        model = body["model"]
        if model == "claude-429":
            _send(writer, 429, _error("rate_limit_error", "slow down"), b"retry-after: 7\r\n")
        elif model == "claude-400":
            _send(writer, 400, _error("invalid_request_error", "max_tokens: too large"))
        elif model == "claude-401":
            _send(
                writer,
                401,
                _error("authentication_error", f"invalid x-api-key {self.seen[-1].headers['x-api-key']}"),
            )
        elif model == "claude-529":
            _send(writer, 529, _error("overloaded_error", "Overloaded"))
        elif model == "claude-silent":
            await reader.read(1)
            self.disconnected.set()
            return False
        elif body.get("stream"):
            return await self._stream(body, reader, writer)
        else:
            _send(writer, 200, _message(body))
        await writer.drain()
        return True

    async def _stream(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        events = _tool_events() if body.get("tools") else _text_events(body)
        for number, (name, data) in enumerate(events):
            if body["model"] == "claude-stall" and number == 4:
                await writer.drain()
                await reader.read(1)
                self.disconnected.set()
                return False
            if body["model"] == "claude-drop" and number == 4:
                await writer.drain()
                return False
            if body["model"] == "claude-cut" and name in ("message_delta", "message_stop"):
                continue
            chunk = f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _send(writer: asyncio.StreamWriter, status: int, body: dict[str, Any], extra: bytes = b"") -> None:
    data = json.dumps(body).encode()
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
        % (status, extra, len(data), data)
    )


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


_USAGE = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}


def _message(body: dict[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "hello"}]
    reason = "end_turn"
    if body.get("tools"):
        content = [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}]
        reason = "tool_use"
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {**_USAGE, "output_tokens": 3},
    }


def _start(model: str) -> tuple[str, dict[str, Any]]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
    }
    return "message_start", {
        "type": "message_start",
        "message": {**message, "usage": {**_USAGE, "output_tokens": 1}},
    }


def _end(reason: str) -> list[tuple[str, dict[str, Any]]]:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        ("message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 3}}),
        ("message_stop", {"type": "message_stop"}),
    ]


def _text_events(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    # More equal chunks than litellm's own limit would let through.
    words = ["ha"] * 150 if body["model"] == "claude-repeats" else ["hel", "lo", " you"]
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    deltas = [
        (
            "content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}},
        )
        for word in words
    ]
    stop = ("content_block_stop", {"type": "content_block_stop", "index": 0})
    return [_start(body["model"]), ("content_block_start", block), *deltas, stop, *_end("end_turn")]


def _tool_events() -> list[tuple[str, dict[str, Any]]]:
    tool = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    parts = ['{"city"', ': "Oslo"}']
    deltas = [
        (
            "content_block_delta",
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": part},
            },
        )
        for part in parts
    ]
    start = ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": tool})
    stop = ("content_block_stop", {"type": "content_block_stop", "index": 0})
    return [_start("claude"), start, *deltas, stop, *_end("tool_use")]
