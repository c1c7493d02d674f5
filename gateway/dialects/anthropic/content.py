"""Content blocks of a Messages request as chat messages."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.chat import items, text_field, thing, wrong
from gateway.dialects.front import Body

Turn = Any
"""A string, or a list of blocks."""
_encode = msgspec.json.Encoder().encode
_ONLY_THERE = "is a block that only Anthropic's own service takes"


def system_text(value: Turn, where: str) -> str:
    """Return a system prompt (a string or text blocks) as one text."""
    if isinstance(value, str):
        return value
    blocks = items(value, where)
    return "\n".join(text_field(block, "text", f"{where}.{i}.") for i, block in enumerate(blocks))


def user_messages(value: Turn, where: str) -> list[Body]:
    """Return a user's turn: first the tool results, as chat completions want them, then what else was said."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    results: list[Body] = []
    parts: list[Body] = []
    for index, block in enumerate(items(value, f"{where}.content")):
        place = f"{where}.content.{index}"
        if block.get("type") == "tool_result":
            results.append(_tool_result(block, place))
        else:
            parts.append(_part(block, place))
    if parts or not results:
        results.append({"role": "user", "content": _plain(parts)})
    return results


def assistant_message(value: Turn, where: str) -> Body:
    """Return an assistant's turn: its text, its tool calls, and as ``thinking_blocks`` the reasoning that its model has signed."""
    if isinstance(value, str):
        return {"role": "assistant", "content": value}
    texts: list[str] = []
    calls: list[Body] = []
    thoughts: list[Body] = []
    for index, block in enumerate(items(value, f"{where}.content")):
        place = f"{where}.content.{index}"
        kind = block.get("type")
        if kind == "text":
            texts.append(text_field(block, "text", f"{place}."))
        elif kind == "tool_use":
            calls.append(_tool_use(block, place))
        elif kind in ("thinking", "redacted_thinking"):
            if block.get("signature") or block.get("data"):
                thoughts.append(block)
        else:
            raise wrong(f"{place}.type", f"'{kind}' {_ONLY_THERE}", "unsupported")
    message: Body = {"role": "assistant", "content": "\n".join(texts) if texts else None}
    if thoughts:
        message["thinking_blocks"] = thoughts
    if calls:
        message["tool_calls"] = calls
    elif not texts:
        message["content"] = ""
    return message


def _plain(parts: list[Body]) -> str | list[Body]:
    """Return a single text as a string: not every engine takes lists."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _tool_use(block: Body, where: str) -> Body:
    arguments = _encode(thing(block.get("input", {}), f"{where}.input")).decode()
    name = text_field(block, "name", f"{where}.")
    return {
        "id": text_field(block, "id", f"{where}."),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _tool_result(block: Body, where: str) -> Body:
    """Return a tool's result. Chat completions cannot mark a failure: its text says so instead."""
    value = block.get("content")
    content: str | list[Body]
    if value is None or isinstance(value, str):
        content = value or ""
    else:
        blocks = items(value, f"{where}.content")
        parts = [_part(inner, f"{where}.content.{index}") for index, inner in enumerate(blocks)]
        texts = all(part["type"] == "text" for part in parts)
        content = "\n".join(part["text"] for part in parts) if texts else parts
    if block.get("is_error"):
        said = {"type": "text", "text": "The tool failed:"}
        content = f"The tool failed: {content}" if isinstance(content, str) else [said, *content]
    return {
        "role": "tool",
        "tool_call_id": text_field(block, "tool_use_id", f"{where}."),
        "content": content,
    }


def _part(block: Body, where: str) -> Body:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": text_field(block, "text", f"{where}.")}
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": _address(block, where)}}
    if kind == "document":
        return _document(block, where)
    raise wrong(f"{where}.type", f"'{kind}' {_ONLY_THERE}", "unsupported")


def _address(block: Body, where: str) -> str:
    source = thing(block.get("source"), f"{where}.source")
    kind = source.get("type")
    if kind == "url":
        return text_field(source, "url", f"{where}.source.")
    if kind == "base64":
        media = text_field(source, "media_type", f"{where}.source.")
        return f"data:{media};base64,{text_field(source, 'data', f'{where}.source.')}"
    raise wrong(
        f"{where}.source.type", f"'{kind}' cannot be read here: send 'base64' or 'url'", "unsupported"
    )


def _document(block: Body, where: str) -> Body:
    source = thing(block.get("source"), f"{where}.source")
    if source.get("type") == "text":
        return {"type": "text", "text": text_field(source, "data", f"{where}.source.")}
    if source.get("type") != "base64":
        raise wrong(f"{where}.source.type", "must be 'base64' or 'text' for a document", "unsupported")
    title = block.get("title")
    name = title if isinstance(title, str) and title else "document"
    return {"type": "file", "file": {"filename": name, "file_data": _address(block, where)}}
