"""Forms on both sides of litellm: what of a request may reach it, and what of its answers reaches the caller."""

from __future__ import annotations

from typing import Any

import msgspec

from routing.call import Call
from routing.errors import ContractError

PARAMETERS = frozenset(
    {
        "messages",
        "temperature",
        "top_p",
        "n",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "user",
        "seed",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "thinking",
    }
)
"""The only fields handed to litellm. Others are attack surface (``api_base``, ``api_key``, callbacks) or mean nothing there."""
_IGNORED = frozenset(
    {"model", "stream", "stream_options", "metadata", "store", "service_tier", "safety_identifier"}
)
"""Fields that a target without them serves all the same; ``stream_options`` is ours to honour."""
_EMBEDDING_PARAMETERS = frozenset({"input", "dimensions", "encoding_format", "user"})
_ANSWER_FIELDS = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint", "data"}
)
_EXTRA = "provider_specific_fields"
_DELTA_FIELDS = ("role", "content", "tool_calls", "reasoning_content", "thinking_blocks", "refusal")
_encode = msgspec.json.Encoder().encode


def parameters(call: Call, model: str, drop: tuple[str, ...]) -> dict[str, Any]:
    """Return the allow-listed fields of a call; raise :class:`ContractError` for a field the target cannot take.

    With ``drop_params`` such fields are left out instead.
    """
    body = call.payload.rebuilt(model, call.overrides, drop)
    allowed = _EMBEDDING_PARAMETERS if call.path == "/embeddings" else PARAMETERS
    for name in body:
        if name not in allowed and name not in _IGNORED and not call.route.drop_params:
            raise ContractError(f"The model '{call.route.alias}' does not take '{name}'.", param=name)
    for message in body.get("messages") or ():
        _refuse_fetching(message, https="anthropic" in call.route.targets[0].dialect)
    if body.get("messages"):
        body["messages"] = [_with_signed_thoughts(message) for message in body["messages"]]
    return {name: value for name, value in body.items() if name in allowed and value is not None}


def _with_signed_thoughts(message: Any) -> Any:
    """Return a message without the blocks of reasoning that its model would not take back: those that lost their signature."""
    if not isinstance(message, dict) or not isinstance(message.get("thinking_blocks"), list):
        return message
    others = {name: value for name, value in message.items() if name != "thinking_blocks"}
    signed = [
        block
        for block in message["thinking_blocks"]
        if isinstance(block, dict) and (block.get("signature") or block.get("data"))
    ]
    return {**others, "thinking_blocks": signed} if signed else others


def _refuse_fetching(message: Any, *, https: bool) -> None:
    """Refuse media that litellm would download itself: the gateway fetches nothing on a caller's word.

    Anthropic fetches ``https`` addresses on its own side; those are handed on.
    """
    content = message.get("content") if isinstance(message, dict) else None
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        for field in ("image_url", "file", "input_audio", "video_url"):
            media = part.get(field)
            values = media.values() if isinstance(media, dict) else (media,)
            for value in values:
                if (
                    isinstance(value, str)
                    and "://" in value[:64]
                    and not (https and value.startswith("https://"))
                ):
                    raise ContractError("Give images and files inline, as data: URLs.", param="messages")


def whole_body(answer: dict[str, Any]) -> bytes:
    """Return an unstreamed answer as OpenAI's JSON, without what litellm adds for itself."""
    for choice in answer.get("choices") or ():
        choice.pop("provider_specific_fields", None)
        message = choice.get("message")
        if isinstance(message, dict):
            kept = {name: value for name, value in message.items() if value != [] and name != _EXTRA}
            if "tool_calls" in kept:
                kept["tool_calls"] = [_tool_call(call, indexed=False) for call in kept["tool_calls"]]
            choice["message"] = {"content": None, **kept}
    if isinstance(answer.get("usage"), dict):
        answer["usage"] = usage(answer["usage"])
    return _encode({name: value for name, value in answer.items() if name in _ANSWER_FIELDS})


def _tool_call(call: dict[str, Any], *, indexed: bool) -> dict[str, Any]:
    """Return a tool call as OpenAI has it. What a provider must get back with it (Gemini's signatures) is in its id."""
    return {name: value for name, value in call.items() if name != _EXTRA and (indexed or name != "index")}


def usage(found: dict[str, Any]) -> dict[str, Any]:
    """Return usage in OpenAI's form, cached and reasoning tokens included.

    Anthropic charges for writing its cache; that count has no place in OpenAI's form and keeps its own name.
    """
    prompt_details = found.get("prompt_tokens_details") or {}
    completion_details = found.get("completion_tokens_details") or {}
    shaped: dict[str, Any] = {
        "prompt_tokens": found.get("prompt_tokens") or 0,
        "completion_tokens": found.get("completion_tokens") or 0,
        "total_tokens": found.get("total_tokens") or 0,
        "prompt_tokens_details": {"cached_tokens": prompt_details.get("cached_tokens") or 0},
        "completion_tokens_details": {"reasoning_tokens": completion_details.get("reasoning_tokens") or 0},
    }
    written = found.get("cache_creation_input_tokens") or prompt_details.get("cache_creation_tokens") or 0
    if written:
        shaped["prompt_tokens_details"]["cache_creation_tokens"] = written
    return shaped


def chunk_events(chunk: dict[str, Any], *, with_usage: bool) -> bytes:
    """Return the SSE events of one chunk: the choices, and usage in a chunk of its own as OpenAI sends it."""
    common = {
        "id": chunk.get("id"),
        "object": "chat.completion.chunk",
        "created": chunk.get("created"),
        "model": chunk.get("model"),
    }
    events = b""
    choices = [_choice(choice) for choice in chunk.get("choices") or ()]
    kept = [choice for choice in choices if choice["delta"] or choice["finish_reason"] is not None]
    if kept:
        events = b"data: " + _encode({**common, "choices": kept}) + b"\n\n"
    if with_usage and isinstance(chunk.get("usage"), dict):
        events += b"data: " + _encode({**common, "choices": [], "usage": usage(chunk["usage"])}) + b"\n\n"
    return events


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    delta = choice.get("delta") or {}
    kept = {name: delta[name] for name in _DELTA_FIELDS if delta.get(name) is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = [_tool_call(call, indexed=True) for call in kept["tool_calls"]]
    return {"index": choice.get("index") or 0, "delta": kept, "finish_reason": choice.get("finish_reason")}
