"""A Responses request as a chat completion.

What only OpenAI's own service has (its hosted tools, background work, stored prompts and conversations) is refused by
name, or left out where the model's route says ``drop_params``; fields that are unknown here pass through unchanged.
"""

from __future__ import annotations

from typing import Any

from gateway.dialects.chat import items, text_field, thing, wrong
from gateway.dialects.front import Body
from gateway.dialects.responses.items import to_messages

_TRANSLATED = frozenset(
    {
        "input", "instructions", "max_output_tokens", "metadata", "model", "previous_response_id", "reasoning",
        "store", "stream", "stream_options", "text", "tool_choice", "tools", "top_logprobs",
    }
)  # fmt: skip
_HINTS = frozenset({"include", "max_tool_calls", "prompt_cache_options", "prompt_cache_retention"})
"""Without these the answer is the same: they speak of hosted tools that are refused, or of caches."""
_OPENAIS_OWN = {
    "background": (None, False),
    "context_management": (None, []),
    "conversation": (None,),
    "moderation": (None,),
    "n": (None, 1),
    "prompt": (None,),
    "truncation": (None, "disabled"),
}
"""Fields that cannot be had here, and the values that ask for nothing."""
_NEVER = ("background", "conversation", "n")
"""Nor natively: AIRI keeps no work in the background, and a conversation at the provider could be another tenant's."""
_LOGPROBS = "message.output_text.logprobs"


def to_chat(body: Body, given: list[Body], *, drop: bool = False, lenient: bool = False) -> Body:
    """Return the chat form of a request whose whole input, earlier turns included, is ``given``.

    ``lenient`` leaves out what has no place there: for a call that goes to its target in its own form.
    """
    messages = to_messages(given, _instructions(body), lenient=lenient)
    chat: Body = {"model": body.get("model"), "messages": messages}
    for name, value in body.items():
        if name in _TRANSLATED or name in _HINTS:
            continue
        if name in _OPENAIS_OWN:
            kept = lenient and name not in _NEVER
            if value not in _OPENAIS_OWN[name] and not drop and not kept:
                raise wrong(name, "cannot be had on this route", "unsupported")
            continue
        chat[name] = value
    chat.update(_settings(body))
    chat.update(_text(thing(body.get("text") or {}, "text")))
    _add_tools(chat, body, drop=drop or lenient)
    return chat


def _instructions(body: Body) -> str | None:
    value = body.get("instructions")
    if value is not None and not isinstance(value, str):
        raise wrong("instructions", "must be a string")
    return value


def _settings(body: Body) -> Body:
    chat: Body = {}
    limit = body.get("max_output_tokens")
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise wrong("max_output_tokens", "must be a whole number of at least 1")
        chat["max_tokens"] = limit
    for name in ("stream", "store"):
        if not isinstance(body.get(name, False), bool | None):
            raise wrong(name, "must be true or false")
    if body.get("stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    thing(body.get("metadata") or {}, "metadata")
    effort = thing(body.get("reasoning") or {}, "reasoning").get("effort")
    if effort is not None:
        chat["reasoning_effort"] = text_field({"effort": effort}, "effort", "reasoning.")
    include = body.get("include") or []
    if not isinstance(include, list):
        raise wrong("include", "must be a list of strings")
    top = body.get("top_logprobs")
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20):
        raise wrong("top_logprobs", "must be a whole number between 0 and 20")
    if _LOGPROBS in include or top:
        chat["logprobs"] = True
        if top:
            chat["top_logprobs"] = top
    return chat


def _text(text: Body) -> Body:
    chat: Body = {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    form = text.get("format")
    if form is None:
        return chat
    kind = text_field(thing(form, "text.format"), "type", "text.format.")
    if kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        schema = {name: form[name] for name in ("description", "strict") if form.get(name) is not None}
        schema["name"] = text_field(form, "name", "text.format.", empty=False)
        schema["schema"] = thing(form.get("schema"), "text.format.schema")
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind != "text":
        raise wrong("text.format.type", "must be 'text', 'json_schema' or 'json_object'", "invalid_value")
    return chat


def _add_tools(chat: Body, body: Body, *, drop: bool) -> None:
    given = items(body.get("tools") or [], "tools")
    choice = body.get("tool_choice")
    allowed: set[str] | None = None
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        named = items(choice.get("tools"), "tool_choice.tools")
        allowed = {str(tool.get("name")) for tool in named}
        choice = choice.get("mode", "auto")
    tools = []
    for index, each in enumerate(given):
        tool = _tool(each, f"tools.{index}", drop=drop)
        if tool is not None and (allowed is None or each.get("name") in allowed):
            tools.append(tool)
    if tools:
        chat["tools"] = tools
    if choice is not None and (tools or not drop) and not (drop and _of_hosted_tool(choice)):
        chat["tool_choice"] = _choice(choice)


def _tool(given: Body, where: str, *, drop: bool) -> Body | None:
    kind = given.get("type")
    if kind not in ("function", "custom"):
        if drop and isinstance(kind, str):
            return None
        raise wrong(
            f"{where}.type", f"'{kind}' is a tool that only OpenAI runs; send functions", "unsupported"
        )
    shaped: dict[str, Any] = {"name": text_field(given, "name", f"{where}.", empty=False)}
    fields = ("description", "parameters", "strict") if kind == "function" else ("description", "format")
    shaped.update({name: given[name] for name in fields if given.get(name) is not None})
    if (
        kind == "custom"
        and isinstance(shaped.get("format"), dict)
        and shaped["format"].get("type") == "grammar"
    ):
        grammar = {name: shaped["format"].get(name) for name in ("syntax", "definition")}
        shaped["format"] = {"type": "grammar", "grammar": grammar}
    return {"type": kind, kind: shaped}


def _of_hosted_tool(choice: Any) -> bool:
    return isinstance(choice, dict) and choice.get("type") not in ("function", "custom")


def _choice(choice: Any) -> Any:
    if choice in ("auto", "none", "required"):
        return choice
    kind = thing(choice, "tool_choice").get("type")
    if kind not in ("function", "custom"):
        raise wrong("tool_choice", "must be 'auto', 'none', 'required', or name a function", "unsupported")
    return {"type": kind, kind: {"name": text_field(choice, "name", "tool_choice.")}}
