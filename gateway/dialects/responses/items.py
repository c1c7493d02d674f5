"""Items of the Responses API as chat messages.

Consecutive items of the assistant (text, function calls) are one chat message, and system texts at the beginning are one, as
chat templates want them. Reasoning of earlier turns is not sent on: chat completions have no place for it.
"""

from __future__ import annotations

from typing import Any

from airi.errors import InvalidRequestError
from airi.ids import new_id
from gateway.dialects.chat import items, text_field, thing, wrong
from gateway.dialects.front import Body

_IMAGE_DETAIL = ("low", "high", "auto", "original")
_PLAIN_ITEMS = frozenset(
    {"message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
)
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}


def input_items(value: Any) -> list[Body]:
    """Return ``input`` as a list of items, each with its type and an id: what is stored, listed and translated."""
    if value is None:
        return []
    if isinstance(value, str):
        return [_listed({"role": "user", "content": [{"type": "input_text", "text": value}]})]
    return [_listed(item) for item in items(value, "input")]


def _listed(item: Body) -> Body:
    kind = item.get("type") or ("message" if "role" in item else None)
    if not isinstance(kind, str):
        return item
    listed = {**item, "type": kind, "id": item.get("id") or new_id(_PREFIXES.get(kind, "item"))}
    if kind == "message":
        listed.setdefault("status", "completed")
        if isinstance(item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            more: Body = {"annotations": []} if part == "output_text" else {}
            listed["content"] = [{"type": part, "text": item["content"], **more}]
    return listed


def past_items(given: list[Body]) -> list[Body]:
    """Return items of earlier turns as an upstream takes them that has stored none of them.

    Ids of its own making would be looked up there, so messages and calls go without; reasoning can be taken up again only
    where the upstream has handed it out encrypted.
    """
    past = []
    for item in given:
        kind = item.get("type")
        if kind == "reasoning" and not item.get("encrypted_content"):
            continue
        dropped = ("id", "status") if kind in _PLAIN_ITEMS else ("status",)
        past.append({name: value for name, value in item.items() if name not in dropped})
    return past


def to_messages(
    given: list[Body], instructions: str | None, where: str = "input", *, lenient: bool = False
) -> list[Body]:
    """Return chat messages; raise for an item that cannot be one. ``where`` names the list in errors.

    ``lenient``: what has no place in chat completions is left out, for a call that goes to its target in its own form.
    """
    messages: list[Body] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for index, item in enumerate(given):
        try:
            _add(messages, item, f"{where}.{index}")
        except InvalidRequestError:
            if not lenient or item.get("type") == "item_reference":
                raise
    if lenient and not any(message["role"] != "system" for message in messages):
        messages.append({"role": "user", "content": ""})
    if not messages or all(message["role"] == "system" for message in messages):
        raise wrong(where, "must say something: a text, or at least one item")
    return messages


def _add(messages: list[Body], item: Body, where: str) -> None:
    kind = item.get("type")
    if kind == "message":
        _add_message(messages, item, where)
    elif kind in ("function_call", "custom_tool_call"):
        message = _assistant(messages)
        message.setdefault("content", None)
        message.setdefault("tool_calls", []).append(_call(item, where))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        call_id = text_field(item, "call_id", f"{where}.")
        messages.append({"role": "tool", "tool_call_id": call_id, "content": _output(item, where)})
    elif kind == "item_reference":
        raise wrong(
            f"{where}.type",
            "'item_reference' is not kept here: send the item itself, or previous_response_id",
            "unsupported",
        )
    elif kind != "reasoning":
        raise wrong(f"{where}.type", f"'{kind}' belongs to a tool that this model cannot run", "unsupported")


def _add_message(messages: list[Body], item: Body, where: str) -> None:
    role = text_field(item, "role", f"{where}.")
    content = _content(item.get("content"), where)
    if role == "assistant":
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        message = _assistant(messages)
        message["content"] = (message.get("content") or "") + text
    elif role in ("system", "developer"):
        text = (
            content if isinstance(content, str) else "\n".join(str(part.get("text", "")) for part in content)
        )
        if messages and all(message["role"] == "system" for message in messages):
            messages[-1]["content"] += f"\n\n{text}"
        else:
            messages.append({"role": "system", "content": text})
    elif role == "user":
        messages.append({"role": "user", "content": content})
    else:
        raise wrong(f"{where}.role", "must be 'user', 'assistant', 'system' or 'developer'", "invalid_value")


def _assistant(messages: list[Body]) -> Body:
    """Return the assistant's message that is going on, or begin one. After its calls were answered it is over."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _call(item: Body, where: str) -> Body:
    call: Body = {"id": text_field(item, "call_id", f"{where}.")}
    name = text_field(item, "name", f"{where}.")
    if item["type"] == "custom_tool_call":
        custom = {"name": name, "input": text_field(item, "input", f"{where}.")}
        return {**call, "type": "custom", "custom": custom}
    function = {"name": name, "arguments": text_field(item, "arguments", f"{where}.")}
    return {**call, "type": "function", "function": function}


def _output(item: Body, where: str) -> str | list[Body]:
    value = item.get("output")
    if isinstance(value, str):
        return value
    parts = [
        _part(part, f"{where}.output.{index}") for index, part in enumerate(items(value, f"{where}.output"))
    ]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _content(value: Any, where: str) -> str | list[Body]:
    if isinstance(value, str):
        return value
    parts = [
        _part(part, f"{where}.content.{index}") for index, part in enumerate(items(value, f"{where}.content"))
    ]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: Body, where: str) -> Body:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": text_field(part, "text", f"{where}.")}
    if kind == "refusal":
        return {"type": "text", "text": text_field(part, "refusal", f"{where}.")}
    if kind == "input_image":
        return _image(part, where)
    if kind == "input_file":
        return _file(part, where)
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": thing(part.get("input_audio"), f"{where}.input_audio")}
    raise wrong(f"{where}.type", f"'{kind}' is no part that can be sent to this model", "unsupported")


def _image(part: Body, where: str) -> Body:
    if part.get("image_url") is None:
        raise wrong(f"{where}.file_id", "names a file that AIRI does not keep: send image_url", "unsupported")
    image: Body = {"url": text_field(part, "image_url", f"{where}.")}
    detail = part.get("detail")
    if detail is not None:
        if detail not in _IMAGE_DETAIL:
            raise wrong(f"{where}.detail", f"must be one of {', '.join(_IMAGE_DETAIL)}", "invalid_value")
        image["detail"] = detail
    return {"type": "image_url", "image_url": image}


def _file(part: Body, where: str) -> Body:
    if part.get("file_data") is None:
        raise wrong(
            f"{where}", "must hold its file as 'file_data': AIRI keeps and fetches none", "unsupported"
        )
    data = text_field(part, "file_data", f"{where}.")
    name = part.get("filename")
    return {
        "type": "file",
        "file": {"filename": name if isinstance(name, str) else "file", "file_data": data},
    }
