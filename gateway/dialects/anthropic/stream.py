"""A chat stream as Anthropic's events.

One content block is open at a time. Chat completions may send pieces of several tool calls in turns: pieces of a call that
must wait for the one before it are held until that one's arguments are complete JSON, or the stream ends.
"""

from __future__ import annotations

from typing import Any

import msgspec

from airi.ids import new_id
from gateway.dialects.anthropic.answer import stop_reason, usage_of
from gateway.dialects.chat import Completion, ThinkingBlock, ToolCall, chunks_of, complete_json
from gateway.dialects.front import Body
from gateway.errors import UpstreamStreamError
from gateway.usage import Usage, from_openai

_encode = msgspec.json.Encoder().encode


def event(kind: str, **fields: Any) -> bytes:
    """Return one server-sent event."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


class _Tool:
    """One tool call on its way: what of its arguments was seen, and what still waits to be sent."""

    __slots__ = ("id", "name", "seen", "sent", "waiting")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.seen = ""
        self.sent = False
        self.waiting: list[str] = []


class MessageStream:
    """``feed`` chat events, send what it returns; ``end`` when they are over."""

    def __init__(self, model: str, input_estimate: int) -> None:
        self._model = model
        self._input_estimate = input_estimate
        self._index = -1
        self._open = ""
        self._tools: dict[int, _Tool] = {}
        self._streaming: int | None = None
        self._reason: str | None = None
        self._sequence: str | None = None
        self._refused = False
        self._deltas = 0
        self._usage: Usage | None = None
        self._started = False

    def feed(self, events: bytes) -> bytes:
        """Return Anthropic's events for whole chat events."""
        out: list[bytes] = []
        for chunk in chunks_of(events):
            if not self._started:
                out.append(self._start(chunk))
            if chunk.usage is not None:
                self._usage = from_openai(chunk.usage)
            for choice in chunk.choices:
                if choice.index:
                    continue
                if choice.delta is not None:
                    if choice.delta.thinking_blocks:
                        self._think(choice.delta.thinking_blocks, out)
                    else:
                        self._delta(choice.delta.thought, "thinking", out)
                    self._refused = self._refused or bool(choice.delta.refusal)
                    self._delta(choice.delta.content or choice.delta.refusal or "", "text", out)
                    for call in choice.delta.tool_calls or ():
                        self._call(call, out)
                if choice.finish_reason is not None:
                    self._reason, self._sequence = choice.finish_reason, choice.stop_sequence
        return b"".join(out)

    def end(self) -> bytes:
        """Return what closes the open block and the message."""
        out: list[bytes] = [] if self._started else [self._start(Completion())]
        if self._streaming is not None:
            self._advance(out, all_there=True)
        self._close(out)
        reason = stop_reason(self._reason, self._sequence, refused=self._refused)
        usage = self._usage or Usage(self._input_estimate, self._deltas)
        out.append(
            event(
                "message_delta",
                delta={"stop_reason": reason, "stop_sequence": self._sequence},
                usage=usage_of(usage),
            )
        )
        out.append(event("message_stop"))
        return b"".join(out)

    def _start(self, chunk: Completion) -> bytes:
        self._started = True
        message: Body = {
            "id": new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": chunk.model or self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # What the prompt really was is known at the end, and stands in message_delta.
            "usage": usage_of(Usage(self._input_estimate, 0)),
        }
        return event("message_start", message=message)

    def _delta(self, text: str, kind: str, out: list[bytes]) -> None:
        if not text:
            return
        self._deltas += 1
        if self._open != kind:
            if self._streaming is not None:
                self._advance(out, all_there=True)
            block = (
                {"type": "thinking", "thinking": "", "signature": ""}
                if kind == "thinking"
                else {"type": "text", "text": "", "citations": None}
            )
            self._begin(kind, block, out)
        out.append(
            event("content_block_delta", index=self._index, delta={"type": f"{kind}_delta", kind: text})
        )

    def _think(self, pieces: list[ThinkingBlock], out: list[bytes]) -> None:
        """Send reasoning that comes in blocks; the same text in ``reasoning_content`` beside them is not sent again."""
        for piece in pieces:
            if piece.data is not None:
                if self._streaming is not None:
                    self._advance(out, all_there=True)
                self._begin("redacted_thinking", {"type": "redacted_thinking", "data": piece.data}, out)
                self._close(out)
                continue
            self._delta(piece.thinking or "", "thinking", out)
            if piece.signature:
                if self._open != "thinking":  # the thought itself was left out
                    self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""}, out)
                signed = {"type": "signature_delta", "signature": piece.signature}
                out.append(event("content_block_delta", index=self._index, delta=signed))
                self._close(out)

    def _call(self, piece: ToolCall, out: list[bytes]) -> None:
        tool = self._tools.get(piece.index)
        if tool is None:
            tool = self._tools[piece.index] = _Tool()
        tool.id = tool.id or piece.id or ""
        tool.name = tool.name or piece.name
        if piece.text:
            tool.seen += piece.text
            tool.waiting.append(piece.text)
        self._deltas += 1
        self._advance(out)

    def _advance(self, out: list[bytes], *, all_there: bool = False) -> None:
        """Send what may be sent, call by call in the order in which they began."""
        for index, tool in list(self._tools.items()):
            if tool.sent:
                if tool.waiting and index != self._streaming:
                    raise UpstreamStreamError("The upstream went on with a tool call that had ended.")
            else:
                before = self._tools[self._streaming] if self._streaming is not None else None
                if before is not None and not all_there and not complete_json(before.seen):
                    return
                self._begin_tool(index, tool, out)
            self._send_waiting(tool, out)

    def _begin_tool(self, index: int, tool: _Tool, out: list[bytes]) -> None:
        self._streaming = index
        tool.sent = True
        block = {"type": "tool_use", "id": tool.id or new_id("toolu"), "name": tool.name, "input": {}}
        self._begin("tool_use", block, out)

    def _send_waiting(self, tool: _Tool, out: list[bytes]) -> None:
        if not tool.waiting:
            return
        if self._open != "tool_use":
            raise UpstreamStreamError("The upstream mixed text into the arguments of a tool call.")
        delta = {"type": "input_json_delta", "partial_json": "".join(tool.waiting)}
        out.append(event("content_block_delta", index=self._index, delta=delta))
        tool.waiting.clear()

    def _begin(self, kind: str, block: Body, out: list[bytes]) -> None:
        self._close(out)
        self._index += 1
        self._open = kind
        out.append(event("content_block_start", index=self._index, content_block=block))

    def _close(self, out: list[bytes]) -> None:
        if self._open:
            out.append(event("content_block_stop", index=self._index))
            self._open = ""
