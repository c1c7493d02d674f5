"""Chat completions as dialects read them: whole answers, stream chunks, and reading what callers sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from airi.errors import AiriError, InvalidRequestError
from gateway.dialects.front import Body
from gateway.errors import UpstreamStreamError
from gateway.streams import event_data


class Function(msgspec.Struct):
    """A function's name and (part of) its arguments; of a custom tool, ``input``."""

    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or a piece of one."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: Function | None = None
    custom: Function | None = None

    @property
    def name(self) -> str:
        """The tool's name, where this piece has it."""
        called = self.function or self.custom
        return (called.name or "") if called is not None else ""

    @property
    def text(self) -> str:
        """The arguments (JSON) or the custom input, as far as this piece goes."""
        if self.custom is not None:
            return self.custom.input or ""
        return (self.function.arguments or "") if self.function is not None else ""


class ThinkingBlock(msgspec.Struct):
    """A block of Anthropic's reasoning, or a piece of one: its text, the signature that ends it, or ``data`` in cipher."""

    type: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class Message(msgspec.Struct):
    """An answer's message, or a delta of it. Engines say ``reasoning_content`` or ``reasoning``."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking_blocks: list[ThinkingBlock] | None = None
    tool_calls: list[ToolCall] | None = None

    @property
    def thought(self) -> str:
        """The reasoning, under whichever name."""
        return self.reasoning_content or self.reasoning or ""


class Choice(msgspec.Struct):
    """A choice of an answer or of a chunk. ``stop_reason`` is vLLM's: the stop sequence that was met."""

    index: int = 0
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None

    @property
    def stop_sequence(self) -> str | None:
        """The stop sequence that ended the answer, where the engine says so."""
        return self.stop_reason if isinstance(self.stop_reason, str) else None


class Completion(msgspec.Struct):
    """A whole answer or a chunk of one, as far as dialects need it."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    choices: list[Choice] = []
    usage: dict[str, Any] | None = None
    service_tier: str | None = None


_chunk_decoder = msgspec.json.Decoder(Completion)


def completion_of(answer: Body) -> Completion:
    """Return a decoded answer as a :class:`Completion`; raise when it is not one."""
    try:
        return msgspec.convert(answer, Completion)
    except msgspec.ValidationError as error:
        raise AiriError(
            "The upstream's answer is not a chat completion.", status=502, code="upstream_invalid_answer"
        ) from error


def chunks_of(events: bytes) -> Iterator[Completion]:
    """Yield the chunks of whole events; comments and ``[DONE]`` yield nothing."""
    for event in events.split(b"\n\n"):
        data = event_data(event)
        if data is None or data == b"[DONE]":
            continue
        try:
            yield _chunk_decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise UpstreamStreamError("The upstream sent an event that is not a chat chunk.") from error


def complete_json(text: str) -> bool:
    """Say whether ``text`` is one whole JSON value: whether a tool's arguments are all there."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def wrong(param: str, why: str, code: str = "invalid_type") -> InvalidRequestError:
    """Return the 400 that names a field of the caller's."""
    return InvalidRequestError(f"'{param}' {why}.", param=param, code=code)


def text_field(body: Body, name: str, where: str, *, empty: bool = True) -> str:
    """Return a string that must be there."""
    value = body.get(name)
    if not isinstance(value, str) or not (empty or value):
        raise wrong(f"{where}{name}", "must be a string")
    return value


def items(value: Any, param: str) -> list[Body]:
    """Return a list of objects that must be one."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise wrong(param, "must be a list of objects")
    return value


def thing(value: Any, param: str) -> Body:
    """Return an object that must be one."""
    if not isinstance(value, dict):
        raise wrong(param, "must be an object")
    return value
