"""A small real HTTP server that speaks Anthropic's /v1/messages: plain, streamed, with tools, and its errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.routing.wire_server import Seen, WireServer, begin, chunk, send


class AnthropicServer(WireServer):
    """Answers by the model's name: ``claude-tools``, ``claude-429``, ``claude-stall``, ``claude-cut``, ``claude-…``."""

    async def respond(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; see :class:`WireServer`."""
        body, model = seen.body, seen.body["model"]
        if model == "claude-429":
            send(writer, 429, _error("rate_limit_error", "slow down"), {"retry-after": "7"})
        elif model == "claude-400":
            send(writer, 400, _error("invalid_request_error", "max_tokens: too large"))
        elif model == "claude-401":
            words = f"invalid x-api-key {seen.headers['x-api-key']}"
            send(writer, 401, _error("authentication_error", words))
        elif model == "claude-529":
            send(writer, 529, _error("overloaded_error", "Overloaded"))
        elif model == "claude-silent":
            await self.wait_for_leaving(reader)
            return False
        elif body.get("stream"):
            return await self._stream(body, reader, writer)
        else:
            send(writer, 200, _message(body))
        await writer.drain()
        return True

    async def _stream(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        begin(writer, "text/event-stream")
        if body["model"] == THINKS:
            events = _thinking_events(body)
        else:
            events = _tool_events() if body.get("tools") else _text_events(body)
        for number, (name, data) in enumerate(events):
            if body["model"] == "claude-stall" and number == 4:
                await writer.drain()
                await self.wait_for_leaving(reader)
                return False
            if body["model"] == "claude-drop" and number == 4:
                await writer.drain()
                return False
            if body["model"] == "claude-cut" and name in ("message_delta", "message_stop"):
                continue
            chunk(writer, f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        chunk(writer, b"")
        await writer.drain()
        return True


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


THINKS = "claude-sonnet-4-5"
"""A model that litellm knows to think."""
THOUGHTS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "Ann is ann@example.com, I think.", "signature": "c2lnbmVk"},
    {"type": "redacted_thinking", "data": "Y2lwaGVy"},
]
"""What it thinks before it says hello."""
_USAGE = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}


def _message(body: dict[str, Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "hello"}]
    reason = "end_turn"
    if body["model"] == THINKS:
        content = [*THOUGHTS, *content]
    elif body.get("tools"):
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


def _thinking_events(body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    thought, cipher = THOUGHTS
    text = thought["thinking"]
    deltas = [{"type": "thinking_delta", "thinking": text[at : at + 5]} for at in range(0, len(text), 5)]
    deltas.append({"type": "signature_delta", "signature": thought["signature"]})
    events = [
        _start(body["model"]),
        _block_start(0, {"type": "thinking", "thinking": "", "signature": ""}),
        *(_delta(0, delta) for delta in deltas),
        _block_stop(0),
        _block_start(1, cipher),
        _block_stop(1),
        _block_start(2, {"type": "text", "text": ""}),
        _delta(2, {"type": "text_delta", "text": "hello"}),
        _block_stop(2),
    ]
    return [*events, *_end("end_turn")]


def _block_start(index: int, block: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "content_block_start", {"type": "content_block_start", "index": index, "content_block": block}


def _delta(index: int, delta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}


def _block_stop(index: int) -> tuple[str, dict[str, Any]]:
    return "content_block_stop", {"type": "content_block_stop", "index": index}


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
