"""What the tests of the door add to a live tree: a recording upstream, Anthropic's, a tenant under a policy, a narrow key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.gateway.upstreams import Recorder, serving
from tests.routing import bedrock_server, gemini_server
from tests.routing.anthropic_server import THINKS, AnthropicServer
from tests.routing.bedrock_server import BedrockServer
from tests.routing.gemini_server import GeminiServer
from tests.support.live import Live, wait_until

_BUNDLE = """
apiVersion: airi/v1alpha1
kind: Provider
metadata: {{name: recorder}}
base_url: http://127.0.0.1:{recorder}/v1
---
apiVersion: airi/v1alpha1
kind: Provider
metadata: {{name: claude}}
dialect: anthropic
base_url: http://127.0.0.1:{anthropic}
api_key: ${{file:{secret}}}
---
{models}
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {{name: guarded}}
teams: [{{name: red}}, {{name: blue}}]
---
apiVersion: airi/v1alpha1
kind: Policy
metadata: {{name: guarded-no-addresses}}
scope: {{tenants: [guarded]}}
stages: [prompt, response]
detectors: [{{id: email}}]
effect: redact
reason: PERSONAL_DATA
---
apiVersion: airi/v1alpha1
kind: Policy
metadata: {{name: guarded-no-secrets}}
scope: {{tenants: [guarded]}}
when: data.counts["word"] > 0
detectors: [{{id: words, words: [xyzzy]}}]
effect: deny
reason: MAGIC_WORD
message: Not that word.
"""
_MODEL = """apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: {name}}}
versions: [{{name: v1, targets: [{{provider: {provider}, model: {model}}}]}}]
price: {{input: 1, output: 2}}
{more}
---
"""
_VISION = "contract: {vision: true, embeddings: true}"
_MODELS = "".join(
    _MODEL.format(name=name, provider=provider, model=model, more=more)
    for name, provider, model, more in (
        ("rec/echo", "recorder", "recorded", _VISION),
        ("rec/narrow", "recorder", "recorded", "contract: {tools: false, json_schema: false}"),
        (
            "rec/drop",
            "recorder",
            "recorded",
            "contract: {tools: false, json_schema: false}\ndrop_params: true",
        ),
        ("claude/text", "claude", "claude-text", _VISION),
        ("claude/drop", "claude", "claude-text", "drop_params: true"),
        ("claude/thinks", "claude", THINKS, "fallbacks: [rec/echo]\nretries: {max_attempts: 1}"),
        ("claude/429", "claude", "claude-429", "retries: {max_attempts: 1}"),
        ("gemini/text", "gemini", "gemini-2.5-flash", _VISION),
        ("gemini/401", "gemini", "gemini-401", ""),
        ("gemini/cut", "gemini", "gemini-cut", ""),
        ("bedrock/text", "bedrock", "amazon.nova-lite-v1:0", _VISION),
        ("bedrock/401", "bedrock", "some.model-401", ""),
        ("bedrock/cut", "bedrock", "some.model-cut", ""),
        ("gemini/uncounted", "gemini", "gemini-uncounted", ""),
        ("bedrock/uncounted", "bedrock", "some.model-uncounted", ""),
    )
)


@dataclass
class Door:
    """The tree, its upstreams, and keys of the tenant ``guarded``."""

    live: Live
    recorder: Recorder
    anthropic: AnthropicServer
    gemini: GeminiServer
    bedrock: BedrockServer
    guarded: str
    red: str
    blue: str

    def post(self, path: str, body: object, key: str | None = None, **headers: str) -> httpx.Response:
        """POST JSON as the development tenant, or with another key."""
        with self.live.client(key) as client:
            return client.post(path, json=body, headers=headers)


def _with_keys(gemini: GeminiServer, bedrock: BedrockServer) -> list[dict[str, Any]]:
    """Providers whose keys are given as values, as the dashboard does: the admin API seals them."""
    keys = {
        "region": "eu-west-1",
        "access_key_id": bedrock_server.ACCESS_KEY,
        "secret_access_key": bedrock_server.SECRET_KEY,
        "session_token": bedrock_server.TOKEN,
    }
    return [
        {
            "metadata": {"name": "gemini"},
            "dialect": "litellm:gemini",
            "base_url": gemini.url + "/v1beta",
            "api_key": gemini_server.KEY,
        },
        {
            "metadata": {"name": "bedrock"},
            "dialect": "litellm:bedrock",
            "base_url": bedrock.url,
            "aws": keys,
        },
    ]


@contextmanager
def door_on(live: Live) -> Iterator[Door]:
    """Put the resources into ``live`` and wait until its gateway serves them."""
    foreign = AnthropicServer(), GeminiServer(), BedrockServer()
    with Recorder().serving() as recorder, serving(*foreign), live.admin() as admin:
        secret = live.home / "upstream.key"
        secret.write_text("sk-upstream")
        anthropic, gemini, bedrock = foreign
        for provider in _with_keys(gemini, bedrock):
            made = admin.post("/admin/v1/providers", json=provider)
            assert made.status_code == 201, made.text
        bundle = _BUNDLE.format(
            recorder=recorder.port, anthropic=anthropic.port, secret=secret, models=_MODELS
        )
        applied = admin.post("/admin/v1/apply", content=bundle, headers={"content-type": "application/yaml"})
        assert applied.status_code == 200, applied.text
        keys = []
        for team in (None, "red", "blue"):
            made = admin.post("/admin/v1/keys", json={"tenant": "guarded", "name": "k", "team": team})
            assert made.status_code == 201, made.text
            keys.append(made.json()["key"])
        with live.client(keys[0]) as client:
            wait_until(lambda: client.get("/v1/models/rec/echo").status_code == 200)
        yield Door(live, recorder, *foreign, *keys)
