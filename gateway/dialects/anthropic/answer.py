"""Chat answers as Anthropic messages: whole ones, usage, errors."""

from __future__ import annotations

from typing import Any

import msgspec

from airi.errors import AiriError
from airi.ids import new_id
from gateway.dialects.chat import Completion, Message
from gateway.dialects.front import Body
from gateway.usage import Usage

_STOPS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_encode = msgspec.json.Encoder().encode


def to_message(answer: Completion, usage: Usage, model: str) -> Body:
    """Return a whole answer as a message."""
    choice = answer.choices[0] if answer.choices else None
    said = choice.message if choice is not None else None
    content: list[Body] = []
    if said is not None:
        content += _thoughts(said)
        text = said.content or said.refusal
        if text:
            content.append({"type": "text", "text": text, "citations": None})
        content += [
            {
                "type": "tool_use",
                "id": call.id or new_id("toolu"),
                "name": call.name,
                "input": input_of(call.text),
            }
            for call in said.tool_calls or ()
        ]
    reason = choice.finish_reason if choice is not None else None
    sequence = choice.stop_sequence if choice is not None else None
    refused = said is not None and bool(said.refusal)
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": answer.model or model,
        "content": content,
        "stop_reason": stop_reason(reason, sequence, refused=refused),
        "stop_sequence": sequence,
        "usage": usage_of(usage),
    }


def _thoughts(said: Message) -> list[Body]:
    """Return the blocks of reasoning; without a signature where the model gives none."""
    if not said.thinking_blocks:
        return [{"type": "thinking", "thinking": said.thought, "signature": ""}] if said.thought else []
    return [
        {"type": "redacted_thinking", "data": block.data}
        if block.data is not None
        else {"type": "thinking", "thinking": block.thinking or "", "signature": block.signature or ""}
        for block in said.thinking_blocks
    ]


def stop_reason(finish_reason: str | None, sequence: str | None, *, refused: bool = False) -> str:
    """Return Anthropic's word for why an answer ended."""
    if refused:
        return "refusal"
    if sequence is not None and finish_reason == "stop":
        return "stop_sequence"
    return _STOPS.get(finish_reason or "stop", "end_turn")


def usage_of(usage: Usage) -> Body:
    """Return Anthropic's usage: its ``input_tokens`` are those that no cache gave."""
    shaped: Body = {
        "input_tokens": max(usage.input_tokens - usage.cached_tokens, 0),
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
    }
    if usage.reasoning_tokens:
        shaped["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return shaped


def input_of(arguments: str) -> Any:
    """Return a tool's arguments as an object; what is no JSON object is handed on as ``{"invalid_json": TEXT}``."""
    if not arguments.strip():
        return {}
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"invalid_json": arguments}


def error_body(error: AiriError) -> bytes:
    """Return ``{"type": "error", "error": {"type", "message"}}``; AIRI's own code and field stand beside them."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    said: Body = {"type": kind, "message": error.message, "code": error.code}
    if error.param is not None:
        said["param"] = error.param
    return _encode({"type": "error", "error": said})
