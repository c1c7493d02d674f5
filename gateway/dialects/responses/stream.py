"""A chat stream as events of the Responses API, numbered in sequence."""

from __future__ import annotations

from typing import Any

import msgspec

from airi.errors import AiriError
from airi.ids import new_id
from gateway.dialects.chat import Choice, ToolCall, chunks_of
from gateway.dialects.front import Body
from gateway.dialects.responses.answer import (
    Asked,
    call_item,
    logprobs_of,
    message_item,
    reasoning_item,
    refusal_part,
    status_of,
    text_part,
)
from gateway.usage import Usage, from_openai

_encode = msgspec.json.Encoder().encode
_PART_EVENTS = {
    "text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "thought": ("response.reasoning_text", "text"),
}


class _Part:
    """The text part that is being written: of a message, or of a reasoning item."""

    __slots__ = ("item_id", "kind", "logprobs", "number", "output_index", "pieces")

    def __init__(self, kind: str, item_id: str, output_index: int, number: int) -> None:
        self.kind = kind
        self.item_id = item_id
        self.output_index = output_index
        self.number = number
        self.pieces: list[str] = []
        self.logprobs: list[Body] = []

    @property
    def place(self) -> Body:
        return {"item_id": self.item_id, "output_index": self.output_index, "content_index": self.number}

    def shape(self, *, empty: bool = False) -> Body:
        text = "" if empty else "".join(self.pieces)
        if self.kind == "text":
            return text_part(text, [] if empty else self.logprobs)
        return refusal_part(text) if self.kind == "refusal" else {"type": "reasoning_text", "text": text}


class _Call:
    """A tool call that is being written. Several may be at once: each event names its own."""

    __slots__ = ("first", "item_id", "output_index", "pieces")

    def __init__(self, first: ToolCall, output_index: int) -> None:
        first.id = first.id or new_id("call")
        self.first = first
        self.item_id = new_id("fc" if first.custom is None else "ctc")
        self.output_index = output_index
        self.pieces: list[str] = []

    @property
    def events(self) -> tuple[str, str]:
        if self.first.custom is not None:
            return "response.custom_tool_call_input", "input"
        return "response.function_call_arguments", "arguments"

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ResponseStream:
    """``feed`` chat events, send what it returns; ``end`` (or ``fail``) when they are over."""

    def __init__(self, asked: Asked, input_estimate: int) -> None:
        self._asked = asked
        self._input_estimate = input_estimate
        self._number = 0
        self._out: list[bytes] = []
        self._output: list[Body] = []
        self._part: _Part | None = None
        self._parts: list[Body] = []
        self._calls: dict[int, _Call] = {}
        self._reason: str | None = None
        self._usage: Usage | None = None
        self._deltas = 0
        self._started = False

    def feed(self, events: bytes) -> bytes:
        """Return events for whole chat events."""
        for chunk in chunks_of(events):
            self._start()
            if chunk.usage is not None:
                self._usage = from_openai(chunk.usage)
            for choice in chunk.choices:
                if choice.index == 0:
                    self._choice(choice)
        return self._take()

    def finish(self) -> Body:
        """Close what is open and return the response as it ended; its last event is sent by :meth:`last`."""
        self._start()
        self._close_part(status_of(self._reason))
        self._close_calls(status_of(self._reason))
        usage = self._usage or Usage(self._input_estimate, self._deltas)
        return self._asked.ended(self._reason, self._output, usage)

    def last(self, response: Body) -> bytes:
        """Return the remaining events with the one that ends the stream."""
        self._emit(f"response.{response['status']}", response=response)
        return self._take()

    def fail(self, error: AiriError) -> bytes:
        """Return the event that says what went wrong on the way."""
        self._start()
        self._emit("response.failed", response=self._asked.failed(error, self._output))
        return self._take()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            response = self._asked.response("in_progress", [])
            self._emit("response.created", response=response)
            self._emit("response.in_progress", response=response)

    def _choice(self, choice: Choice) -> None:
        delta = choice.delta
        if delta is not None:
            self._write("thought", delta.thought, [])
            self._write("text", delta.content or "", logprobs_of(choice))
            self._write("refusal", delta.refusal or "", [])
            for piece in delta.tool_calls or ():
                self._piece(piece)
        if choice.finish_reason is not None:
            self._reason = choice.finish_reason

    def _write(self, kind: str, text: str, logprobs: list[Body]) -> None:
        if not text:
            return
        self._deltas += 1
        part = self._part
        if part is None or part.kind != kind:
            part = self._begin_part(kind)
        part.pieces.append(text)
        part.logprobs += logprobs
        name = _PART_EVENTS[kind][0]
        more = {"logprobs": logprobs} if kind == "text" else {}
        self._emit(f"{name}.delta", **part.place, delta=text, **more)

    def _begin_part(self, kind: str) -> _Part:
        before = self._part
        if before is not None and (before.kind == "thought" or kind == "thought"):
            self._close_part("completed")
        elif before is not None:
            self._end_part(before)
        if self._part is None:
            if kind == "thought":
                item = reasoning_item(new_id("rs"), None, "in_progress")
            else:
                item = message_item(new_id("msg"), [], "in_progress")
            index = self._add(item)
            part = _Part(kind, item["id"], index, 0)
        else:
            part = _Part(kind, self._part.item_id, self._part.output_index, len(self._parts))
        self._part = part
        self._emit("response.content_part.added", **part.place, part=part.shape(empty=True))
        return part

    def _end_part(self, part: _Part) -> None:
        """Say that a part is whole; its item goes on."""
        name, field = _PART_EVENTS[part.kind]
        text = "".join(part.pieces)
        more: Body = {"logprobs": part.logprobs} if part.kind == "text" else {}
        self._emit(f"{name}.done", **part.place, **{field: text}, **more)
        shape = part.shape()
        self._emit("response.content_part.done", **part.place, part=shape)
        self._parts.append(shape)

    def _close_part(self, status: str) -> None:
        part = self._part
        if part is None:
            return
        self._end_part(part)
        if part.kind == "thought":
            item = reasoning_item(part.item_id, "".join(part.pieces), status)
        else:
            item = message_item(part.item_id, self._parts, status)
        self._part, self._parts = None, []
        self._done(part.output_index, item)

    def _piece(self, piece: ToolCall) -> None:
        self._deltas += 1
        call = self._calls.get(piece.index)
        if call is None:
            self._close_part("completed")
            call = self._calls[piece.index] = _Call(piece, len(self._output))
            self._add(call_item(call.first, call.item_id, "in_progress", ""))
        if piece.text:
            call.pieces.append(piece.text)
            self._emit(
                f"{call.events[0]}.delta",
                item_id=call.item_id,
                output_index=call.output_index,
                delta=piece.text,
            )

    def _close_calls(self, status: str) -> None:
        for call in self._calls.values():
            name, field = call.events
            named = {"name": call.first.name} if field == "arguments" else {}
            self._emit(
                f"{name}.done",
                item_id=call.item_id,
                output_index=call.output_index,
                **named,
                **{field: call.text},
            )
            self._done(call.output_index, call_item(call.first, call.item_id, status, call.text))
        self._calls.clear()

    def _add(self, item: Body) -> int:
        index = len(self._output)
        self._output.append(item)
        self._emit("response.output_item.added", output_index=index, item=item)
        return index

    def _done(self, index: int, item: Body) -> None:
        self._output[index] = item
        self._emit("response.output_item.done", output_index=index, item=item)

    def _emit(self, kind: str, **fields: Any) -> None:
        data = _encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def _take(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out
