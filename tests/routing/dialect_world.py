"""Gemini's and Bedrock's servers behind one router, for the tests of the litellm adapter."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from routing.adapters.litellm_sdk import load
from routing.call import Call
from routing.registry import RoutingTable
from routing.router import Router
from tests.routing import bedrock_server, gemini_server
from tests.routing.asking import Asking, made
from tests.routing.bedrock_server import BedrockServer
from tests.routing.build import model, provider, table
from tests.routing.gemini_server import GeminiServer

MODELS = (
    *("429", "400", "401", "503", "silent", "stall", "drop", "half", "cut", "broken", "throttled"),
    *("think", "length", "blocked", "uncounted"),
)
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0"
SECRETS = {
    "GEMINI_TEST_KEY": gemini_server.KEY,
    "ACCESS": bedrock_server.ACCESS_KEY,
    "SECRET": bedrock_server.SECRET_KEY,
    "TOKEN": bedrock_server.TOKEN,
    "BEARER": bedrock_server.BEARER,
    # What litellm would find in the environment of a machine of Amazon's or Google's, and must not use.
    "AWS_ACCESS_KEY_ID": "AKIDAMBIENT",
    "AWS_SECRET_ACCESS_KEY": "ambient",
    "AWS_SESSION_TOKEN": "ambient",
    "AWS_PROFILE_NAME": "ambient",
    "AWS_BEARER_TOKEN_BEDROCK": "ambient",
    "AWS_BEDROCK_RUNTIME_ENDPOINT": "http://127.0.0.1:9",
    "GEMINI_API_KEY": "ambient",
    "GEMINI_API_BASE": "http://127.0.0.1:9",
}
AWS = {
    "region": "eu-west-1",
    "access_key_id": "${env:ACCESS}",
    "secret_access_key": "${env:SECRET}",
    "session_token": "${env:TOKEN}",
}


@dataclass
class World(Asking):
    """Both servers behind one router; ``name`` is the dialect that a test speaks of."""

    gemini: GeminiServer
    bedrock: BedrockServer
    router: Router
    built: RoutingTable
    name: str = ""

    @property
    def server(self) -> GeminiServer | BedrockServer:
        return self.gemini if self.name == "gemini" else self.bedrock

    def call(self, kind: str = "x", *, stream: bool = False, alias: str = "", **body: Any) -> Call:
        return made(self.built.resolve(alias or f"{self.name}-{kind}"), stream=stream, **body)


def _table(gemini: GeminiServer, bedrock: BedrockServer) -> RoutingTable:
    gem = {"dialect": "litellm:gemini"}
    aws = {"dialect": "litellm:bedrock"}
    once = {"retries": {"max_attempts": 1}}
    titan = {"provider": "aws", "model": "amazon.titan-embed-text-v2:0"}
    return table(
        provider("gem", gemini.url + "/v1beta", api_key="${env:GEMINI_TEST_KEY}", **gem),
        provider("gem-open", gemini.url + "/v1beta", **gem),
        provider("aws", bedrock.url, aws=AWS, **aws),
        provider("aws-key", bedrock.url, api_key="${env:BEARER}", **aws),
        *[model(f"gemini-{k}", {"provider": "gem", "model": f"gemini-{k}"}, **once) for k in MODELS],
        *[model(f"bedrock-{k}", {"provider": "aws", "model": f"some.new-model-{k}"}, **once) for k in MODELS],
        model("gemini-x", {"provider": "gem", "model": "gemini-2.5-flash"}, **once),
        model("gemini-free", {"provider": "gem", "model": "gemini-2.5-flash"}, drop_params=True),
        model("gemini-open", {"provider": "gem-open", "model": "gemini-2.5-flash"}, **once),
        model("gemini-vectors", {"provider": "gem", "model": "gemini-embedding-001"}, **once),
        model("bedrock-x", {"provider": "aws", "model": "anthropic.claude-sonnet-4-5-20250929-v1:0"}, **once),
        model("bedrock-old", {"provider": "aws", "model": "anthropic.claude-3-5-sonnet-20240620-v1:0"}),
        model("bedrock-free", {"provider": "aws", "model": "amazon.nova-lite-v1:0"}, drop_params=True),
        model("bedrock-arn", {"provider": "aws", "model": ARN}),
        model("bedrock-key", {"provider": "aws-key", "model": "amazon.nova-lite-v1:0"}),
        model("bedrock-vectors", titan, **once),
    )


@asynccontextmanager
async def dialect_world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Both servers and a router; at the end, nothing but loopback may have been connected to."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    await asyncio.to_thread(load)
    elsewhere: list[object] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            elsewhere.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    async with GeminiServer() as gemini, BedrockServer() as bedrock:
        built = _table(gemini, bedrock)
        router = Router()
        await router.apply(built)
        yield World(gemini, bedrock, router, built)
        assert router.fleet.places
        await router.close()
    assert not elsewhere, "all traffic stays on loopback"
