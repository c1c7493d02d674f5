"""OpenAI's own hosts are told the output's bound by the name that all of their models take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airi.config.kinds import Metadata, Provider
from routing.adapters.openai import OpenAIUpstream
from routing.call import Call
from routing.payload import Payload
from routing.specs import provider_spec


def sent(base_url: str, body: dict[str, Any], overrides: dict[str, Any] | None) -> dict[str, Any]:
    spec = provider_spec(
        Provider(metadata=Metadata(name="p"), base_url=base_url), lambda *_: pytest.fail("no secret")
    )
    upstream = OpenAIUpstream(spec, spec.endpoints[0])
    call = Call(route=None, tenant="t", payload=Payload(body), overrides=overrides)  # type: ignore[arg-type]
    decoded: dict[str, Any] = json.loads(upstream._encode(call, "m", ()))
    return decoded


@pytest.mark.parametrize(
    "url",
    ["https://api.openai.com/v1", "https://eu.api.openai.com/v1", "https://us.openai.azure.com/openai/v1"],
)
async def test_hosted_by_openai(url: str) -> None:
    assert sent(url, {"model": "x"}, {"max_tokens": 7}) == {"model": "m", "max_completion_tokens": 7}
    assert sent(url, {"model": "x", "max_tokens": 9}, None) == {"model": "m", "max_completion_tokens": 9}
    assert sent(url, {"model": "x", "max_tokens": 9}, {"max_tokens": 7}) == {
        "model": "m",
        "max_completion_tokens": 7,
    }


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://openai.com.evil.example/v1", "https://api.mistral.ai/v1"]
)
async def test_elsewhere_nothing_is_renamed(url: str) -> None:
    assert sent(url, {"model": "x", "max_tokens": 9}, {"max_tokens": 7}) == {"model": "m", "max_tokens": 7}
