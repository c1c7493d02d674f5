"""A small real HTTP server that speaks Gemini's generateContent (Google AI Studio) and refuses what the real one would."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from tests.routing.wire_server import Seen, WireServer, begin, chunk, send

KEY = "AIza-canary"
_PATH = re.compile(
    r"^/v1beta/models/(?P<model>[\w.-]+):(generateContent|(?P<stream>streamGenerateContent\?alt=sse)|batchEmbedContents)$"
)
_FIELDS = {
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "generationConfig",
    "safetySettings",
    "labels",
}
_GENERATION = {
    *("temperature", "topP", "topK", "maxOutputTokens", "stopSequences", "candidateCount", "seed"),
    *("presencePenalty", "frequencyPenalty", "responseMimeType", "responseSchema", "responseJsonSchema"),
    *("thinkingConfig", "responseLogprobs", "logprobs"),
}
_PARTS = {"text", "inlineData", "functionCall", "functionResponse"}
SIGNATURE = "c2lnbmF0dXJl"


class GeminiServer(WireServer):
    """Answers by the model's name: ``gemini-429``, ``gemini-stall``, ``gemini-cut``, ``gemini-x`` …"""

    async def respond(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; see :class:`WireServer`."""
        path = _PATH.match(seen.path)
        refused = _refusal(path, seen)
        kind = path["model"].partition("-")[2] if path else ""
        if refused is not None or path is None:
            send(writer, refused["error"]["code"] if refused else 404, refused or {})
        elif kind == "429":
            send(writer, 429, _error(429, "RESOURCE_EXHAUSTED", "slow down"), {"retry-after": "7"})
        elif kind == "503":
            send(writer, 503, _error(503, "UNAVAILABLE", "The model is overloaded."))
        elif kind == "silent":
            await self.wait_for_leaving(reader)
            return False
        elif path["stream"]:
            return await self._stream(kind, seen.body, reader, writer)
        elif "requests" in seen.body:
            send(writer, 200, {"embeddings": [{"values": [0.5, -1.0]} for _ in seen.body["requests"]]})
        else:
            send(writer, 200, _answer(kind, seen.body))
        await writer.drain()
        return True

    async def _stream(
        self, kind: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        begin(writer, "text/event-stream")
        if kind == "broken":
            chunk(writer, _event(_error(503, "UNAVAILABLE", "The model is overloaded.")))
        for number, event in enumerate(_events(kind, body) if kind != "broken" else ()):
            if number == 2 and kind in ("stall", "drop"):
                await writer.drain()
                if kind == "stall":
                    await self.wait_for_leaving(reader)
                return False
            if kind == "uncounted":
                event = {name: value for name, value in event.items() if name != "usageMetadata"}
            if kind != "cut" or "finishReason" not in json.dumps(event):
                chunk(writer, _event(event))
        chunk(writer, b"")
        await writer.drain()
        return True


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\r\n\r\n".encode()


def _error(code: int, status: str, message: str, reason: str | None = None) -> dict[str, Any]:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    details = [{"@type": kind, "reason": reason, "domain": "googleapis.com"}] if reason else []
    return {"error": {"code": code, "message": message, "status": status, "details": details}}


def _refusal(path: re.Match[str] | None, seen: Seen) -> dict[str, Any] | None:
    """Return the error for a wrong path, key or body."""
    if path is None:
        return _error(404, "NOT_FOUND", f"no such path: {seen.path}")
    if seen.headers.get("x-goog-api-key") is None:
        return _error(403, "PERMISSION_DENIED", "Method doesn't allow unregistered callers.")
    if seen.headers["x-goog-api-key"] != KEY or path["model"] == "gemini-401":
        words = f"API key not valid. Please pass a valid API key. {seen.headers['x-goog-api-key']}"
        return _error(400, "INVALID_ARGUMENT", words, "API_KEY_INVALID")
    if "requests" in seen.body:
        return None
    problem = _problem(camel(seen.body))
    return _error(400, "INVALID_ARGUMENT", problem) if problem else None


def _problem(body: dict[str, Any]) -> str | None:
    """Return what the real service would say of a body that it does not take."""
    config = body.get("generationConfig", {})
    unknown = [*(body.keys() - _FIELDS), *(config.keys() - _GENERATION)]
    if unknown:
        return f"Invalid JSON payload received. Unknown name {unknown[0]!r}"
    if config.get("maxOutputTokens", 1) > 60_000:
        return "max_output_tokens: too large"
    before: set[str] = set()
    for content in body["contents"]:
        if content["role"] not in ("user", "model"):
            return "Please use a valid role: user, model."
        kinds = {name for part in content["parts"] for name in part if name in _PARTS}
        if not kinds or not all(part.keys() & _PARTS for part in content["parts"]):
            return "contents.parts must not be empty."
        if "functionResponse" in kinds and "functionCall" not in before:
            return "Function response turn must come immediately after a function call turn."
        before = kinds
    return None


def camel(value: Any) -> Any:
    """Return a body with the names that ProtoJSON also takes in snake case as it writes them itself."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = ("args", "response", "parameters", "responseSchema", "responseJsonSchema")
    renamed = {re.sub(r"_(\w)", lambda found: found[1].upper(), name): item for name, item in value.items()}
    return {name: item if name in kept else camel(item) for name, item in renamed.items()}


_USAGE = {
    "promptTokenCount": 16,
    "candidatesTokenCount": 3,
    "totalTokenCount": 24,
    "cachedContentTokenCount": 4,
    "thoughtsTokenCount": 5,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 16}],
}


def _candidate(*parts: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate],
        "usageMetadata": _USAGE,
        "modelVersion": "gemini-x",
        "responseId": "r1",
    }


def _part(body: dict[str, Any]) -> dict[str, Any]:
    """Return what the model says: a call of the first tool, JSON, an answer to a tool's result, or hello."""
    body = camel(body)
    answered = any("functionResponse" in part for part in body["contents"][-1]["parts"])
    if body.get("tools") and not answered:
        call = {"name": "weather", "args": {"city": "Oslo"}}
        return {"functionCall": call, "thoughtSignature": SIGNATURE}
    if body.get("generationConfig", {}).get("responseMimeType") == "application/json":
        return {"text": '{"city": "Oslo"}'}
    return {"text": "It rains." if answered else "hello"}


_THOUGHT = {"text": "Hm.", "thought": True}
_BLOCKED = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": _USAGE, "responseId": "r1"}


def _answer(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    if kind == "blocked":
        return _BLOCKED
    thoughts = [_THOUGHT] if kind == "think" else []
    return _candidate(*thoughts, _part(body), reason="MAX_TOKENS" if kind == "length" else "STOP")


def _events(kind: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    part = _part(body)
    if kind == "think":
        return [_candidate(_THOUGHT), _candidate(part, reason="STOP")]
    if kind in ("blocked", "length") or part != {"text": "hello"}:
        return [_answer(kind, body)]
    return [
        _candidate({"text": "hel"}),
        _candidate({"text": "lo"}),
        _candidate({"text": " you"}, reason="STOP"),
    ]
