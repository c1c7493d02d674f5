"""Discovery and adoption: engines by what they answer, providers by their keys, simulated models always."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from airi.config.document import ConfigDocument
from airi.config.kinds import KINDS, Model
from airi.up.adopt import adopt, earlier_sim_ports, write_adopted
from airi.up.engines import Engine, find_engines
from airi.up.providers import KNOWN_PROVIDERS
from routing.prices import PriceMap

ENGINES: dict[str, dict[str, Any]] = {
    "vllm": {
        "/v1/models": {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "owned_by": "vllm"}]},
        "/version": {"version": "0.32.0"},
    },
    "llama.cpp": {
        "/v1/models": {"object": "list", "data": [{"id": "gemma-3-4b.gguf", "owned_by": "llamacpp"}]},
        "/api/tags": {"models": [{"name": "", "model": ""}]},
    },
    "ollama": {
        "/v1/models": {"object": "list", "data": [{"id": "llama3.2:3b", "owned_by": "library"}]},
        "/api/tags": {"models": [{"name": "llama3.2:3b"}, {"name": "nomic-embed-text:latest"}]},
    },
    "lm-studio": {
        "/v1/models": {"object": "list", "data": [{"id": "qwen3-4b", "owned_by": "organization_owner"}]},
        "/api/v0/models": {"data": [{"id": "qwen3-4b", "type": "llm"}]},
    },
    "sglang": {
        "/v1/models": {"object": "list", "data": [{"id": "meta-llama/Llama-3.1-8B", "owned_by": "sglang"}]},
        "/get_model_info": {"model_path": "meta-llama/Llama-3.1-8B", "is_generation": True},
    },
    "tgi": {"/info": {"model_id": "mistralai/Mistral-7B", "max_total_tokens": 4096, "version": "3.3"}},
}
STRANGERS: dict[str, dict[str, Any]] = {
    "a web application": {"/version": {"version": "1.0"}, "/info": {"name": "shop"}},
    "another gateway": {"/v1/models": {"data": [{"id": "gpt-5", "owned_by": "openai"}]}},
    "odd": {"/v1/models": {"data": 7}, "/api/tags": {"models": "none"}, "/api/v0/models": {"data": [3]}},
}


class _Server(ThreadingHTTPServer):
    routes: dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        known = self.path in self.server.routes
        body = json.dumps(self.server.routes.get(self.path, {"error": "not found"})).encode()
        self.send_response(200 if known else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Any]:
    with ExitStack() as stack:

        def start(routes: dict[str, Any]) -> int:
            server = stack.enter_context(_Server(("127.0.0.1", 0), _Handler))
            server.routes = routes
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return int(server.server_address[1])

        yield start


async def test_engines_are_known_by_what_they_answer(serve: Any) -> None:
    ports = {kind: serve(routes) for kind, routes in ENGINES.items()}
    found = await find_engines(list(ports.values()))
    assert {engine.kind: engine.port for engine in found} == ports
    assert {engine.kind: engine.models for engine in found}["ollama"] == (
        "llama3.2:3b",
        "nomic-embed-text:latest",
    )


async def test_strangers_are_left_alone(serve: Any) -> None:
    assert await find_engines([serve(routes) for routes in STRANGERS.values()]) == []


async def test_a_port_where_nobody_listens_costs_nothing() -> None:
    assert await find_engines([1]) == []


def _document(resources: list[dict[str, Any]]) -> ConfigDocument:
    return ConfigDocument.of(KINDS[item["kind"]].model_validate(item) for item in resources)


def _serves(document: ConfigDocument, alias: str) -> tuple[str | None, str]:
    model = document.get(Model, alias)
    assert model is not None
    target = model.active_version.targets[0]
    return target.pool or target.provider, target.model


def test_with_nothing_around_the_aliases_are_simulated() -> None:
    adoption = adopt([5001, 5002], [], {})
    document = _document(adoption.resources)
    assert _serves(document, "fast") == ("sim", "sim/small")
    assert _serves(document, "smart") == ("sim", "sim/large")
    assert _serves(document, "embed") == ("sim", "sim/embed")
    embed = document.get(Model, "embed")
    assert embed is not None
    assert embed.contract.embeddings
    assert all(simulated for _, _, simulated in adoption.models)


def test_real_models_take_the_aliases_and_sim_stays_beside_them() -> None:
    engines = [Engine("ollama", 11434, ("llama3.2:3b", "nomic-embed-text:latest"))]
    environment = {"OPENAI_API_KEY": "sk-secret", "GROQ_API_KEY": "gsk-secret", "XAI_API_KEY": " "}
    adoption = adopt([5001], engines, environment)
    document = _document(adoption.resources)
    assert _serves(document, "fast") == ("ollama-11434", "llama3.2:3b")
    assert _serves(document, "smart") == ("openai", "gpt-6.1-sol")
    assert _serves(document, "embed") == ("ollama-11434", "nomic-embed-text:latest")
    assert _serves(document, "sim/small") == ("sim", "sim/small")
    assert _serves(document, "groq/openai/gpt-oss-20b") == ("groq", "openai/gpt-oss-20b")
    assert document.get(Model, "xai/grok-4.7") is None
    groq = document.get(Model, "groq/openai/gpt-oss-20b")
    assert groq is not None
    assert groq.price is not None
    assert groq.price.output > groq.price.input > 0


def test_two_engines_with_the_same_model_keep_the_first() -> None:
    engines = [Engine("vllm", 8000, ("m",)), Engine("sglang", 30000, ("m",))]
    adoption = adopt([5001], engines, {})
    document = _document(adoption.resources)
    assert _serves(document, "m") == ("vllm-8000", "m")


def test_the_file_holds_no_secret_and_remembers_the_ports(tmp_path: Path) -> None:
    path = tmp_path / "adopted.yaml"
    assert earlier_sim_ports(path) == []
    write_adopted(path, adopt([5001, 5002], [], {"ANTHROPIC_API_KEY": "sk-ant-very-secret"}))
    text = path.read_text()
    assert "very-secret" not in text
    assert "${env:ANTHROPIC_API_KEY}" in text
    assert earlier_sim_ports(path) == [5001, 5002]
    _document(list(yaml.safe_load_all(text)))
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_known_model_has_a_price() -> None:
    """The list of models must not rot: the price map of the locked litellm is the judge."""
    price_map = PriceMap.load()
    for provider in KNOWN_PROVIDERS:
        for model in filter(None, (provider.small, provider.large, provider.embed)):
            assert price_map.price(provider.price_key(model)) is not None, (provider.name, model)
