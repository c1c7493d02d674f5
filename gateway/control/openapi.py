"""The model routes in ``/openapi.json``: the data plane has no framework that could describe them.

Fields that the gateway reads are described; others pass through, so every request schema is open.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from gateway.operations import MAX_CHOICES, MAX_USER

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object", "additionalProperties": True}
_LIST: Schema = {"type": "array", "items": _OBJECT}
_FLAG: Schema = {"type": "boolean"}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _request(required: list[str], **fields: Schema) -> Schema:
    named: Schema = {"model": {"type": "string", "minLength": 1, "maxLength": 256}, **fields}
    return {"type": "object", "required": required, "properties": named, "additionalProperties": True}


_SAMPLING: Schema = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "stream": _FLAG,
    "user": {"type": "string", "maxLength": MAX_USER},
}
_GENERATION: Schema = {
    **_SAMPLING,
    "n": _whole(1, MAX_CHOICES),
    "max_tokens": _whole(1, 10_000_000),
    "max_completion_tokens": _whole(1, 10_000_000),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "stream_options": _OBJECT,
}
_TOKENS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
    "minItems": 1,
}
_INPUT: Schema = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}, _TOKENS,
              {"type": "array", "items": _TOKENS, "minItems": 1}]
}  # fmt: skip
_CONTENT: Schema = {"anyOf": [_TEXT, _LIST]}
_MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT},
    },
}
_BLOCKS: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": _CONTENT},
    },
}
REQUESTS: dict[str, tuple[str, Schema]] = {
    "/v1/chat/completions": (
        "Complete a chat",
        _request(["model", "messages"], messages=_MESSAGES, tools=_LIST, **_GENERATION),
    ),
    "/v1/completions": (
        "Complete a text",
        _request(["model", "prompt"], prompt=_INPUT, **_GENERATION),
    ),
    "/v1/embeddings": (
        "Embed texts",
        _request(
            ["model", "input"],
            input=_INPUT,
            dimensions=_whole(1, 65_536),
            encoding_format={"enum": ["float", "base64"]},
        ),
    ),
    "/v1/messages": (
        "Create a message (Anthropic's form)",
        _request(
            ["model", "messages", "max_tokens"],
            messages=_BLOCKS,
            max_tokens=_whole(1, 10_000_000),
            system=_CONTENT,
            tools=_LIST,
            tool_choice=_OBJECT,
            stop_sequences={"type": "array", "items": _TEXT},
            metadata=_OBJECT,
            thinking=_OBJECT,
            output_config=_OBJECT,
            temperature=_number(0, 2),
            stream=_FLAG,
        ),
    ),
    "/v1/responses": (
        "Create a response",
        _request(
            ["model", "input"],
            input=_CONTENT,
            instructions=_TEXT,
            max_output_tokens=_whole(1, 10_000_000),
            previous_response_id=_TEXT,
            store=_FLAG,
            text=_OBJECT,
            reasoning=_OBJECT,
            tools=_LIST,
            **_SAMPLING,
        ),
    ),
    "/v1/moderations": (
        "Judge texts",
        _request(["input"], input={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
    ),
}
_OPENAI_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
    },
}
_KEYS: Schema = {
    "key": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def operation(path: str) -> Schema:
    """Return the description of one model route."""
    summary, request = REQUESTS[path]
    anthropic = path == "/v1/messages"
    error = _ANTHROPIC_ERROR if anthropic else _OPENAI_ERROR
    answers: Schema = {"application/json": {"schema": _OBJECT}}
    if "stream" in request["properties"]:
        answers["text/event-stream"] = {"schema": _OBJECT}
    refusal = {"description": "An error", "content": {"application/json": {"schema": error}}}
    return {
        "summary": summary,
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "tags": ["models"],
        "security": [{name: []} for name in _KEYS],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "The answer", "content": answers},
            **dict.fromkeys(("400", "401", "403", "404", "405", "409", "413", "415", "429"), refusal),
            "5XX": refusal,
        },
    }


def describe(app: FastAPI) -> None:
    """Let ``app`` publish the model routes beside its own."""
    own = app.openapi

    def openapi() -> Schema:
        schema = own()
        if "/v1/chat/completions" not in schema["paths"]:
            schema["paths"].update({path: {"post": operation(path)} for path in REQUESTS})
            schema.setdefault("components", {}).setdefault("securitySchemes", {}).update(_KEYS)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
