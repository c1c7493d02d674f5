"""Chat answers as responses: the object, its output items, usage, and what went wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from airi.errors import AiriError
from airi.ids import new_id
from gateway.dialects.chat import Choice, Completion, ToolCall
from gateway.dialects.front import Body
from gateway.usage import Usage

_encode = msgspec.json.Encoder().encode
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key",
    "safety_identifier", "service_tier", "top_logprobs", "user",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What a response repeats of its request."""

    id: str
    created_at: int
    body: Body

    @classmethod
    def of(cls, body: Body) -> Asked:
        """Begin a response."""
        return cls(new_id("resp"), int(time.time()), body)

    @property
    def stored(self) -> bool:
        """Whether the response can be read again later: yes, unless the caller says no."""
        return self.body.get("store") is not False

    def response(self, status: str, output: list[Body], usage: Usage | None = None, **more: Any) -> Body:
        """Return the response object as it is now."""
        body = self.body
        reasoning = body.get("reasoning") or {}
        text = body.get("text") or {}
        choice = body.get("tool_choice")
        parallel = body.get("parallel_tool_calls")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            **{name: body.get(name) for name in _ECHOED},
            "metadata": body.get("metadata") or {},
            "model": body.get("model"),
            "output": output,
            "parallel_tool_calls": True if parallel is None else parallel,
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "store": self.stored,
            "temperature": 1.0 if body.get("temperature") is None else body["temperature"],
            "text": {**text, "format": text.get("format") or {"type": "text"}},
            "tool_choice": "auto" if choice is None else choice,
            "tools": body.get("tools") or [],
            "top_p": 1.0 if body.get("top_p") is None else body["top_p"],
            "truncation": "disabled",
            "usage": usage_of(usage) if usage is not None else None,
            **more,
        }

    def ended(self, finish_reason: str | None, output: list[Body], usage: Usage) -> Body:
        """Return the response when its answer is there: complete, or cut at a limit."""
        why = _INCOMPLETE.get(finish_reason or "")
        if why is None:
            return self.response("completed", output, usage)
        return self.response("incomplete", output, usage, incomplete_details={"reason": why})

    def failed(self, error: AiriError, output: list[Body]) -> Body:
        """Return the response when it failed on the way."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        return self.response("failed", output, error={"code": code, "message": error.message})


def usage_of(usage: Usage) -> Body:
    """Return usage under the names of the Responses API."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def status_of(finish_reason: str | None) -> str:
    """Return the status of the last output item."""
    return "incomplete" if finish_reason in _INCOMPLETE else "completed"


def output_of(answer: Completion) -> tuple[list[Body], str | None]:
    """Return a whole answer's output items and why it ended."""
    choice = answer.choices[0] if answer.choices else Choice()
    said = choice.message
    if said is None:
        return [], choice.finish_reason
    output: list[Body] = []
    if said.thought:
        output.append(reasoning_item(new_id("rs"), said.thought, "completed"))
    parts: list[Body] = []
    if said.content:
        parts.append(text_part(said.content, logprobs_of(choice)))
    if said.refusal:
        parts.append(refusal_part(said.refusal))
    if parts:
        output.append(message_item(new_id("msg"), parts, status_of(choice.finish_reason)))
    output += [call_item(call) for call in said.tool_calls or ()]
    return output, choice.finish_reason


def logprobs_of(choice: Choice) -> list[Body]:
    """Return a choice's log probabilities in the form that output texts have."""
    found = (choice.logprobs or {}).get("content")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text_part(text: str, logprobs: list[Body] | None = None) -> Body:
    """Return a text part."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def refusal_part(text: str) -> Body:
    """Return a part that says what the model would not do."""
    return {"type": "refusal", "refusal": text}


def message_item(item_id: str, parts: list[Body], status: str) -> Body:
    """Return a message of the assistant."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": parts}


def reasoning_item(item_id: str, text: str | None, status: str) -> Body:
    """Return a reasoning item; ``None`` for one that has no text yet."""
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def call_item(call: ToolCall, item_id: str = "", status: str = "completed", text: str | None = None) -> Body:
    """Return a function call (or a custom tool's). ``text`` replaces the arguments of ``call``."""
    said = call.text if text is None else text
    shared = {"call_id": call.id or new_id("call"), "name": call.name, "status": status}
    if call.custom is not None:
        return {"id": item_id or new_id("ctc"), "type": "custom_tool_call", "input": said, **shared}
    return {"id": item_id or new_id("fc"), "type": "function_call", "arguments": said, **shared}


def event_bytes(event: Body) -> bytes:
    """Return one event as it stands in a stream."""
    return b"event: %b\ndata: %b\n\n" % (str(event.get("type")).encode(), _encode(event))


def chat_usage(usage: Any) -> Body | None:
    """Return a response's usage under the names of chat completions."""
    if not isinstance(usage, dict):
        return None
    return {
        "prompt_tokens": usage.get("input_tokens"),
        "completion_tokens": usage.get("output_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details"),
        "completion_tokens_details": usage.get("output_tokens_details"),
    }


def finish_reason(response: Body) -> str:
    """Return why a response ended, in the word of chat completions."""
    if response.get("status") == "incomplete":
        details = response.get("incomplete_details")
        why = details.get("reason") if isinstance(details, dict) else None
        return "content_filter" if why == "content_filter" else "length"
    output = response.get("output")
    calls = any(
        isinstance(item, dict) and item.get("type") in ("function_call", "custom_tool_call")
        for item in (output if isinstance(output, list) else ())
    )
    return "tool_calls" if calls else "stop"
