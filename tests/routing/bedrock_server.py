"""A small real HTTP server that speaks Bedrock's Converse, event streams and signatures included, and refuses what is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from binascii import crc32
from typing import Any
from urllib.parse import unquote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.routing.wire_server import Seen, WireServer, begin, chunk, send

ACCESS_KEY, SECRET_KEY, TOKEN, BEARER = "AKIDCANARY", "secret-canary", "token-canary", "bearer-canary"
_PATH = re.compile(r"^/model/(?P<model>[^/]+)/(converse(?P<stream>-stream)?|invoke)$")
_LEFT_OUT = {"cut": ("messageStop", "metadata"), "uncounted": ("metadata",)}
_FIELDS = {
    *("messages", "system", "inferenceConfig", "toolConfig", "outputConfig"),
    *("additionalModelRequestFields", "additionalModelResponseFieldPaths", "requestMetadata"),
}
_INFERENCE = {"maxTokens", "temperature", "topP", "stopSequences"}
_BLOCKS = {"text", "image", "toolUse", "toolResult"}
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>\w+)/(?P<scope>[\w/-]+), "
    r"SignedHeaders=(?P<names>[\w;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)


class BedrockServer(WireServer):
    """Answers by the end of the model's name: ``…-429``, ``…-stall``, ``…-cut``, ``…-x`` …"""

    async def respond(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; see :class:`WireServer`."""
        path = _PATH.match(seen.path)
        kind = unquote(path["model"]).partition(":")[0].rpartition("-")[2] if path else ""
        if path is None:
            _refuse(writer, 404, "UnknownOperationException", "no such path")
        elif kind == "401" or not self._is_signed(seen):
            words = f"The security token {seen.headers.get('authorization')} is invalid."
            _refuse(writer, 403, "UnrecognizedClientException", words)
        elif problem := _problem(seen.body):
            _refuse(writer, 400, "ValidationException", problem)
        elif kind == "429":
            _refuse(writer, 429, "ThrottlingException", "slow down", {"retry-after": "7"})
        elif kind == "503":
            _refuse(writer, 503, "ServiceUnavailableException", "Bedrock is unable to process your request.")
        elif kind == "silent":
            await self.wait_for_leaving(reader)
            return False
        elif path["stream"]:
            return await self._stream(kind, seen.body, reader, writer)
        elif "inputText" in seen.body:
            send(writer, 200, {"embedding": [0.5, -1.0], "inputTextTokenCount": 3})
        else:
            send(writer, 200, _answer(kind, seen.body))
        await writer.drain()
        return True

    def _is_signed(self, seen: Seen) -> bool:
        """Whether the request carries the bearer key, or the signature that Amazon's own library computes for it."""
        if seen.headers.get("authorization") == f"Bearer {BEARER}":
            return True
        found = _AUTHORIZATION.fullmatch(seen.headers.get("authorization", ""))
        if found is None or found["key"] != ACCESS_KEY or seen.headers.get("x-amz-security-token") != TOKEN:
            return False
        names = found["names"].split(";")
        if not {"host", "x-amz-date", "x-amz-security-token"} <= set(names):
            return False
        scope = found["scope"].split("/")
        auth = SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY, TOKEN), "bedrock", "eu-west-1")
        headers = {name: seen.headers[name] for name in names}
        request = AWSRequest("POST", self.url + seen.path, headers=headers, data=seen.raw)
        request.context["timestamp"] = seen.headers["x-amz-date"]
        text = auth.string_to_sign(request, auth.canonical_request(request))
        expected = [seen.headers["x-amz-date"][:8], "eu-west-1", "bedrock", "aws4_request"]
        return scope == expected and auth.signature(text, request) == found["signature"]

    async def _stream(
        self, kind: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        begin(writer, "application/vnd.amazon.eventstream")
        if kind in ("broken", "throttled"):
            name = "throttlingException" if kind == "throttled" else "internalServerException"
            chunk(writer, frame(name, {"message": "Try your request again."}, exception=True))
        for number, (name, data) in enumerate(
            _events(kind, body) if kind not in ("broken", "throttled") else ()
        ):
            if number == 3 and kind in ("stall", "drop", "half"):
                if kind == "half":
                    chunk(writer, frame(name, data)[:-7])
                await writer.drain()
                if kind == "stall":
                    await self.wait_for_leaving(reader)
                return False
            if name not in _LEFT_OUT.get(kind, ()):
                chunk(writer, frame(name, data))
        chunk(writer, b"")
        await writer.drain()
        return True


def frame(name: str, data: dict[str, Any], *, exception: bool = False) -> bytes:
    """Return one message in Amazon's event-stream framing: prelude, its checksum, headers, payload, checksum."""
    kind = "exception" if exception else "event"
    pairs = ((f":{kind}-type", name), (":content-type", "application/json"), (":message-type", kind))
    headers = b"".join(
        bytes([len(key)]) + key.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for key, value in pairs
    )
    payload = json.dumps(data).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return message + struct.pack(">I", crc32(message))


def _refuse(
    writer: asyncio.StreamWriter, status: int, kind: str, message: str, headers: dict[str, str] | None = None
) -> None:
    send(writer, status, {"message": message}, {"x-amzn-errortype": kind, **(headers or {})})


def _problem(body: dict[str, Any]) -> str | None:
    """Return what the real service would say of a body that it does not take."""
    if "inputText" in body:
        return None
    config = body.get("inferenceConfig", {})
    unknown = [*(body.keys() - _FIELDS), *(config.keys() - _INFERENCE)]
    if unknown:
        return f"Malformed input request: extraneous key [{unknown[0]}] is not permitted"
    if config.get("maxTokens", 1) > 60_000:
        return "max_tokens: too large"
    role = "assistant"
    for message in body["messages"]:
        if message["role"] == role:
            return "A conversation must alternate between user and assistant roles."
        role = message["role"]
        for block in message["content"]:
            if len(block.keys() & _BLOCKS) != 1:
                return f"Unknown content block {sorted(block)}"
            uses = "toolUse" in block or "toolResult" in block
            if uses and "toolConfig" not in body:
                return (
                    "The toolConfig field must be defined when using toolUse and toolResult content blocks."
                )
    return None if role == "user" else "A conversation must end with a user message."


_USAGE = {
    "inputTokens": 10,
    "outputTokens": 3,
    "totalTokens": 19,
    "cacheReadInputTokens": 4,
    "cacheWriteInputTokens": 2,
}


def _block(body: dict[str, Any]) -> dict[str, Any]:
    """Return what the model says: a call of the first tool, an answer to a tool's result, or hello."""
    answered = any("toolResult" in block for block in body["messages"][-1]["content"])
    tools = body.get("toolConfig", {}).get("tools", [])
    if tools and not answered:
        name = tools[0]["toolSpec"]["name"]
        return {"toolUse": {"toolUseId": "tooluse_1", "name": name, "input": {"city": "Oslo"}}}
    if body.get("outputConfig"):
        return {"text": '{"city": "Oslo"}'}
    return {"text": "It rains." if answered else "hello"}


_THOUGHT = {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}}
_REASONS = {"length": "max_tokens", "blocked": "guardrail_intervened"}


def _answer(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    block = _block(body)
    content = [_THOUGHT, block] if kind == "think" else [block]
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": "tool_use" if "toolUse" in block else _REASONS.get(kind, "end_turn"),
        "usage": _USAGE,
        "metrics": {"latencyMs": 5},
    }


def _events(kind: str, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    block = _block(body)
    opening: list[tuple[str, dict[str, Any]]] = []
    at = 0
    deltas: list[dict[str, Any]]
    if "toolUse" in block:
        use = block["toolUse"]
        start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
        opening = [("contentBlockStart", {"contentBlockIndex": 0, "start": start})]
        deltas = [{"toolUse": {"input": part}} for part in ('{"city"', ': "Oslo"}')]
    elif kind == "think":
        thoughts = ({"text": "Hm."}, {"signature": "c2ln"})
        opening = [_delta(0, {"reasoningContent": thought}) for thought in thoughts]
        opening.append(("contentBlockStop", {"contentBlockIndex": 0}))
        deltas, at = [{"text": block["text"]}], 1
    else:
        text = block["text"]
        deltas = [{"text": part} for part in (("hel", "lo", " you") if text == "hello" else (text,))]
    return [
        ("messageStart", {"role": "assistant"}),
        *opening,
        *(_delta(at, delta) for delta in deltas),
        ("contentBlockStop", {"contentBlockIndex": at}),
        ("messageStop", {"stopReason": _answer(kind, body)["stopReason"]}),
        ("metadata", {"usage": _USAGE, "metrics": {"latencyMs": 5}}),
    ]


def _delta(index: int, delta: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    # "p" is padding, as the real service sends it.
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": delta, "p": "abcd"}
