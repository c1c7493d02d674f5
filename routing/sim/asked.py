"""What a request asks for, read leniently as engines do, refused by name where it makes no sense."""

from __future__ import annotations

import json
from typing import Any

from airi.errors import InvalidRequestError
from routing.sim.behaviour import NORMAL, Behaviour, parse

MAX_CHOICES = 128


def text_of(content: Any) -> str:
    """Return the text of a message's content: a string, parts, or nothing."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = []
    for part in content:
        if isinstance(part, dict):
            text = part.get("text") or part.get("refusal")
            parts.append(text if isinstance(text, str) else f"[{part.get('type', 'part')}]")
    return "\n".join(parts)


def messages_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages; raise when there are none."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise InvalidRequestError("messages must be a list of at least one message.", param="messages")
    return messages


def segments_of(body: dict[str, Any]) -> list[str]:
    """Return the prompt's segments as a chat template would lay them out."""
    segments: list[str] = []
    if body.get("tools"):
        segments.append(json.dumps(body["tools"]))
    for message in messages_of(body):
        segments += (f"<|{message.get('role', 'user')}|>\n", text_of(message.get("content")))
        if message.get("tool_calls"):
            segments.append(json.dumps(message["tool_calls"]))
    segments.append("<|assistant|>\n")
    return segments


def last_user_text(body: dict[str, Any]) -> str:
    """Return the user's latest words."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            return text_of(message.get("content")).strip()
    return ""


def prompts_of(body: dict[str, Any], name: str) -> list[str]:
    """Return ``prompt`` or ``input`` as texts: a string, strings, token ids or lists of token ids."""
    value = body.get(name)
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, int) for item in value):
            return [_of_tokens(value)]
        if all(isinstance(item, list) and item and all(isinstance(t, int) for t in item) for item in value):
            return [_of_tokens(item) for item in value]
    raise InvalidRequestError(
        f"{name} must be a string, a list of strings, or lists of token ids.", param=name
    )


def whole_number(body: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """Return ``body[name]`` when it is a whole number within bounds, ``None`` when absent."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidRequestError(f"{name} must be a whole number from {low} to {high}.", param=name)
    return value


def max_tokens_of(body: dict[str, Any]) -> int | None:
    """Return the most tokens an answer may have."""
    newer = whole_number(body, "max_completion_tokens", 1, 1 << 31)
    return newer if newer is not None else whole_number(body, "max_tokens", 1, 1 << 31)


def stops_of(body: dict[str, Any]) -> list[str]:
    """Return the stop strings."""
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise InvalidRequestError("stop must be a string or a list of strings.", param="stop")
    return [s for s in stops if s]


def behaviour_of(header: bytes | None, body: dict[str, Any], set_before: Behaviour | None) -> Behaviour:
    """Return the script of a request: its header's, else its metadata's, else what the control route set."""
    if header is not None:
        return parse(header, "x-sim")
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and "sim" in metadata:
        return parse(metadata["sim"], "metadata.sim")
    return set_before or NORMAL


def _of_tokens(tokens: list[int]) -> str:
    return " ".join([str(token) for token in tokens])
