"""A Messages request as a chat completion.

Fields without a counterpart are refused by name, or left out where the model's route says ``drop_params``; fields that
are unknown here pass through unchanged. Thinking of earlier turns that its model has signed goes along as ``thinking_blocks``, which
only targets of such models are sent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.dialects.anthropic.content import Turn, assistant_message, system_text, user_messages
from gateway.dialects.chat import items, text_field, thing, wrong
from gateway.dialects.front import Body

_TRANSLATED = frozenset(
    {
        "max_tokens", "messages", "metadata", "model", "output_config", "service_tier", "stop_sequences",
        "stream", "system", "thinking", "tool_choice", "tools",
    }
)  # fmt: skip
_HINTS = frozenset({"cache_control", "diagnostics", "betas", "user_profile_id", "workspace_id"})
"""What only helps Anthropic serve the call faster or bill it: without it the answer is the same."""
_ANTHROPICS_OWN = frozenset(
    {"container", "context_management", "inference_geo", "mcp_servers", "speed", "n", "output_format"}
)
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "xhigh"}
_MEDIUM_THOUGHT = 2_048
_HIGH_THOUGHT = 8_192
_MAX_MESSAGES = 100_000
_encode = msgspec.json.Encoder().encode


def to_chat(body: Body, *, drop: bool = False) -> Body:
    """Return the chat form; raise :class:`~airi.errors.InvalidRequestError` naming what cannot be put into it."""
    chat: Body = {"model": body.get("model"), "messages": _messages(body)}
    chat.update(_settings(body))
    for name, value in body.items():
        if name in _TRANSLATED or name in _HINTS or name in chat:
            continue
        if name == "context_management" and _clears_thinking_alone(value):
            continue  # Anthropic leaves the thinking of earlier turns out by itself
        if name in _ANTHROPICS_OWN:
            if value not in (None, [], {}) and not drop:
                raise wrong(
                    name, "cannot be had on this route: only Anthropic's own service has it", "unsupported"
                )
            continue
        chat[name] = value
    _add_tools(chat, body, drop=drop)
    if body.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def _clears_thinking_alone(value: Any) -> bool:
    edits = value.get("edits") if isinstance(value, dict) else None
    return isinstance(edits, list) and all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking") for edit in edits
    )


def _messages(body: Body) -> list[Body]:
    turns = items(body.get("messages"), "messages")
    if not 0 < len(turns) <= _MAX_MESSAGES:
        raise wrong("messages", "must hold at least one message, at most 100,000")
    messages: list[Body] = []
    if body.get("system") is not None:
        messages.append({"role": "system", "content": system_text(body["system"], "system")})
    for index, turn in enumerate(turns):
        where = f"messages.{index}"
        role = text_field(turn, "role", f"{where}.")
        blocks: Turn = turn.get("content")
        if role == "user":
            messages += user_messages(blocks, where)
        elif role == "assistant":
            messages.append(assistant_message(blocks, where))
        elif role == "system":
            messages.append({"role": "system", "content": system_text(blocks, f"{where}.content")})
        else:
            raise wrong(f"{where}.role", "must be 'user' or 'assistant'", "invalid_value")
    return messages


def _settings(body: Body) -> Body:
    """Return the fields that have another name or form in chat completions."""
    limit = body.get("max_tokens")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise wrong("max_tokens", "must be a whole number; it has no default")
    chat: Body = {"max_tokens": limit}
    if not isinstance(body.get("stream", False), bool):
        raise wrong("stream", "must be true or false")
    if body.get("stream"):
        chat["stream"] = True
    stops = body.get("stop_sequences")
    if stops:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise wrong("stop_sequences", "must be a list of strings")
        chat["stop"] = stops
    metadata = thing(body.get("metadata") or {}, "metadata")
    if metadata.get("user_id") is not None:
        chat["user"] = text_field(metadata, "user_id", "metadata.")
    others = {name: value for name, value in metadata.items() if name != "user_id"}
    if others:
        chat["metadata"] = others
    if body.get("service_tier") is not None:
        chat["service_tier"] = "default" if body["service_tier"] == "standard_only" else body["service_tier"]
    chat.update(_output(body))
    return chat


def _output(body: Body) -> Body:
    """Return how much to think and in which form to answer."""
    chat: Body = {}
    config = thing(body.get("output_config") or {}, "output_config")
    thinking = thing(body.get("thinking") or {}, "thinking")
    effort = config.get("effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _EFFORTS:
            raise wrong("output_config.effort", f"must be one of {', '.join(_EFFORTS)}", "invalid_value")
        chat["reasoning_effort"] = _EFFORTS[effort]
    elif thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise wrong("thinking.budget_tokens", "must be a whole number")
        middle = "medium" if budget < _HIGH_THOUGHT else "high"
        chat["reasoning_effort"] = "low" if budget < _MEDIUM_THOUGHT else middle
    form = config.get("format")
    if form is not None:
        if thing(form, "output_config.format").get("type") != "json_schema":
            raise wrong("output_config.format.type", "must be 'json_schema'", "invalid_value")
        schema = {"name": "output", "schema": form.get("schema"), "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat


def _add_tools(chat: Body, body: Body, *, drop: bool) -> None:
    tools = [
        tool
        for index, given in enumerate(items(body.get("tools") or [], "tools"))
        if (tool := _tool(given, f"tools.{index}", drop=drop)) is not None
    ]
    if tools:
        chat["tools"] = tools
    choice = body.get("tool_choice")
    if choice is None:
        return
    kind = text_field(thing(choice, "tool_choice"), "type", "tool_choice.")
    if kind == "tool":
        name = text_field(choice, "name", "tool_choice.")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in ("auto", "any", "none"):
        chat["tool_choice"] = "required" if kind == "any" else kind
    else:
        raise wrong("tool_choice.type", "must be 'auto', 'any', 'tool' or 'none'", "invalid_value")
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _tool(given: Body, where: str, *, drop: bool) -> Body | None:
    kind = given.get("type")
    if kind not in (None, "custom"):
        if drop:
            return None
        raise wrong(f"{where}.type", f"'{kind}' is a tool that only Anthropic runs", "unsupported")
    function: dict[str, Any] = {"name": text_field(given, "name", f"{where}.", empty=False)}
    if given.get("description") is not None:
        function["description"] = text_field(given, "description", f"{where}.")
    function["parameters"] = thing(given.get("input_schema"), f"{where}.input_schema")
    if given.get("strict") is not None:
        function["strict"] = given["strict"]
    return {"type": "function", "function": function}
