"""A streamed answer put together again, so that content is kept as one message instead of hundreds of pieces.

The gateway calls this for tenants that keep content, after the last byte, and masks what comes out.
"""

from __future__ import annotations

from typing import Any

import msgspec

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_MOST_CHOICES = 128
_MOST_TOOL_CALLS = 256


def join_events(stream: bytes) -> dict[str, Any] | None:
    """Return the ``chat.completion`` that a stream of ``chat.completion.chunk`` events says; ``None`` for no event.

    What cannot be read is passed over: this is for the record, not for the caller. A stream that was cut gives what
    arrived.
    """
    answer: dict[str, Any] | None = None
    choices: dict[int, dict[str, Any]] = {}
    for line in stream.replace(b"\r\n", b"\n").split(b"\n"):
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        try:
            chunk = msgspec.json.decode(line[5:])
        except (msgspec.DecodeError, RecursionError):
            continue
        if not isinstance(chunk, dict):
            continue
        if answer is None:
            answer = {"object": "chat.completion"}
        for name, value in chunk.items():
            if name not in ("choices", "object") and value is not None:
                answer[name] = value
        for part in _dicts(chunk.get("choices")):
            _add_choice(choices, part)
    if answer is not None:
        answer["choices"] = [_whole(choices[index]) for index in sorted(choices)]
    return answer


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _add_choice(choices: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    index = part.get("index", 0)
    if not isinstance(index, int) or (index not in choices and len(choices) >= _MOST_CHOICES):
        return
    choice = choices.setdefault(
        index, {"index": index, "message": {"role": "assistant"}, "finish_reason": None}
    )
    if part.get("finish_reason") is not None:
        choice["finish_reason"] = part["finish_reason"]
    if isinstance(part.get("text"), str):  # the older completions route
        choice.setdefault("texts", []).append(part["text"])
    delta = part.get("delta")
    if not isinstance(delta, dict):
        return
    message = choice["message"]
    if isinstance(delta.get("role"), str):
        message["role"] = delta["role"]
    for name in _TEXTS:
        if isinstance(delta.get(name), str):
            message.setdefault(name, []).append(delta[name])
    for call in _dicts(delta.get("tool_calls")):
        _add_tool_call(message.setdefault("tool_calls", {}), call)


def _add_tool_call(calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    index = part.get("index", 0)
    if not isinstance(index, int) or (index not in calls and len(calls) >= _MOST_TOOL_CALLS):
        return
    call = calls.setdefault(index, {"type": "function", "function": {"name": "", "arguments": []}})
    for name in ("id", "type"):
        if isinstance(part.get(name), str):
            call[name] = part[name]
    function = part.get("function")
    if isinstance(function, dict):
        if isinstance(function.get("name"), str):
            call["function"]["name"] += function["name"]
        if isinstance(function.get("arguments"), str):
            call["function"]["arguments"].append(function["arguments"])


def _whole(choice: dict[str, Any]) -> dict[str, Any]:
    """Join the pieces of one choice: lists of texts become texts."""
    texts = choice.pop("texts", None)
    if texts is not None:
        choice.pop("message")
        return {**choice, "text": "".join(texts)}
    message = choice["message"]
    for name in _TEXTS:
        if name in message:
            message[name] = "".join(message[name])
    if "tool_calls" in message:
        calls = message["tool_calls"]
        for call in calls.values():
            call["function"]["arguments"] = "".join(call["function"]["arguments"])
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return choice
