"""Where the texts of a request are, and how a request is rewritten without touching the caller's.

Looked at in a prompt: what a person, a program or a model wrote — messages (text, text parts, refusals, reasoning), the
arguments of tool calls in the history, tool results, a completion's ``prompt``, an embedding's ``input``, ``instructions``,
the items of a Responses call and of its answer (what tools were told and what they found, too).
Not looked at: tool and schema definitions, names, identifiers, image and audio data, token numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Body = dict[str, Any]
Path = tuple[str | int, ...]
TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a message or a delta that hold text."""
BLOCK_FIELDS = ("thinking_blocks", "reasoning_details")
"""Fields that hold reasoning as a list of blocks, signed by the model that made them."""


class Slot(NamedTuple):
    """A text of a body: where it is, what it says, and whether it is JSON inside a string (a tool's arguments)."""

    path: Path
    text: str
    json: bool = False


def request_texts(body: Body) -> Iterator[Slot]:
    """Yield the texts of a request, whatever its route."""
    messages = body.get("messages")
    if isinstance(messages, list):
        for index, message in enumerate(messages):
            if isinstance(message, dict):
                yield from message_texts(message, ("messages", index))
    for field in _OTHER_TEXTS:
        value = body.get(field)
        if value is not None:
            yield from _texts(value, (field,))


_JSON_TEXTS = frozenset({"arguments", "input"})
_ITEM_TEXTS = (
    "text", "refusal", "thinking", "summary", "content", "arguments", "input", "code", "action", "command", "query",
    "queries", "output", "outputs", "logs", "results",
)  # fmt: skip
"""Where parts of messages and items of the Responses API hold texts."""
_PLAIN_MESSAGE = frozenset({"role", "content", "name"})
_OTHER_TEXTS = ("prompt", "input", "instructions", "system")


def plain_texts(body: Body) -> list[str] | None:
    """Return the texts of a chat whose messages are plain strings; ``None`` where there is more to look at."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    texts: list[str] = []
    for message in messages:
        if type(message) is not dict or not message.keys() <= _PLAIN_MESSAGE:
            return None
        text = message.get("content")
        if type(text) is not str:
            return None
        texts.append(text)
    for field in _OTHER_TEXTS:
        if field in body:
            return None
    return texts


def response_texts(body: Body) -> Iterator[tuple[int, Slot]]:
    """Yield (choice index, text) of a whole answer."""
    choices = body.get("choices")
    for position, choice in enumerate(choices if isinstance(choices, list) else ()):
        if not isinstance(choice, dict):
            continue
        number = choice.get("index")
        index = number if isinstance(number, int) else position
        if isinstance(choice.get("text"), str):
            yield index, Slot(("choices", position, "text"), choice["text"])
        message = choice.get("message")
        if isinstance(message, dict):
            for slot in message_texts(message, ("choices", position, "message")):
                yield index, slot
    if body.get("object") == "response":
        for slot in _texts(body.get("output"), ("output",)):
            yield 0, slot


def message_texts(message: Body, path: Path) -> Iterator[Slot]:
    """Yield the texts of one message."""
    for field in TEXT_FIELDS:
        value = message.get(field)
        if isinstance(value, str):
            yield Slot((*path, field), value)
        elif isinstance(value, list):
            yield from _texts(value, (*path, field))
    for field in BLOCK_FIELDS:
        if field in message:
            yield from _texts(message[field], (*path, field))
    calls = message.get("tool_calls")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, dict):
            yield from _arguments(call, (*path, "tool_calls", index))
    legacy = message.get("function_call")
    if isinstance(legacy, dict) and isinstance(legacy.get("arguments"), str):
        yield Slot((*path, "function_call", "arguments"), legacy["arguments"], json=True)


def _arguments(call: Body, path: Path) -> Iterator[Slot]:
    for kind, field in (("function", "arguments"), ("custom", "input")):
        inner = call.get(kind)
        if isinstance(inner, dict) and isinstance(inner.get(field), str):
            yield Slot((*path, kind, field), inner[field], json=True)


def _texts(value: Any, path: Path) -> Iterator[Slot]:
    """Yield the texts of a string, a list of strings, of parts or of messages."""
    if isinstance(value, str):
        yield Slot(path, value)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str | dict):
                yield from _texts(item, (*path, index))
    elif isinstance(value, dict):
        for field in _ITEM_TEXTS:
            inner = value.get(field)
            if field in _JSON_TEXTS and isinstance(inner, str):
                yield Slot((*path, field), inner, json=True)
            elif isinstance(inner, str | list | dict):
                yield from _texts(inner, (*path, field))
        variables = value.get("variables")
        for name, inner in variables.items() if isinstance(variables, dict) else ():
            yield from _texts(inner, (*path, "variables", name))


def item_texts(value: Any, path: Path) -> Iterator[Slot]:
    """Yield the texts of an item of the Responses API, of a part of one, or of a list of them."""
    return _texts(value, path)


def rewrite(body: Body, changes: dict[Path, str]) -> Body:
    """Return a body with ``changes`` made; what lies on no changed path is shared with the original.

    A block of reasoning whose text changed loses its signature, which is of the text that it had.
    """
    result = dict(body)
    copied: dict[Path, Any] = {(): result}
    for path, text in changes.items():
        for depth in range(1, len(path)):
            prefix = path[:depth]
            if prefix not in copied:
                parent = copied[path[: depth - 1]]
                inner = parent[path[depth - 1]]
                copied[prefix] = parent[path[depth - 1]] = (
                    dict(inner) if isinstance(inner, dict) else list(inner)
                )
        parent = copied[path[:-1]]
        parent[path[-1]] = text
        if isinstance(parent, dict) and parent.get("signature"):
            parent["signature"] = ""
    return result
