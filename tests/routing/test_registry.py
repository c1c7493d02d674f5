"""Aliases, versions, targets, prices, contracts; refusals with names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from airi.config.document import ConfigDocument
from airi.config.kinds import AnyResource
from airi.errors import ConfigError
from airi.secrets import Secret
from routing.contract import Needs
from routing.errors import ContractError, UnknownModelError
from routing.prices import PriceMap
from routing.registry import RoutingTable
from routing.specs import parse_base_url, resolve_plain_reference
from tests.routing.build import model, pool, provider, table

UP = "http://127.0.0.1:9"


def test_an_alias_leads_to_its_active_versions_targets() -> None:
    built = table(
        pool("p", UP, region="eu", engine="sim"),
        provider("o", "https://api.example.com/v1", region="us"),
        model("chat", {"pool": "p", "model": "small"}, {"provider": "o", "model": "large", "weight": 0}),
    )
    route = built.resolve("chat")
    assert route.label == "chat@v1"
    assert [(t.place, t.model, t.region, t.simulated) for t in route.targets] == [
        ("pool:p", "small", "eu", True),
        ("provider:o", "large", "us", False),
    ]
    assert not route.simulated
    assert route.price is None, "an unpriced target leaves the route without a bound"


def test_prices_come_from_target_then_model_then_map(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(
        '{"large": {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}, "pic": {"mode": "image"}}'
    )
    prices = PriceMap.load(file)
    resources = [
        pool("p", UP),
        model("a", {"pool": "p", "price": {"input": 5, "output": 6}}, price={"input": 1, "output": 1}),
        model("b", {"pool": "p"}, price={"input": 3, "output": 4, "cached_input": 1}, fallbacks=["a"]),
        model("c", {"pool": "p", "model": "large"}),
        model("d", {"pool": "p", "model": "pic"}),
        model("e", {"pool": "p", "model": "large"}, fallbacks=["d"]),
    ]
    built = RoutingTable.build(ConfigDocument.of(resources), prices)
    price = {alias: built.resolve(alias).targets[0].price for alias in "abcd"}
    assert price["a"] is not None
    assert price["b"] is not None
    assert price["c"] is not None
    assert (price["a"].source, price["a"].cost_usd_micros(1_000_000, 0)) == ("target", 5_000_000)
    assert (price["b"].source, price["b"].cost_usd_micros(1_000_000, 0, 1_000_000)) == ("model", 1_000_000)
    assert (price["c"].source, price["c"].cost_usd_micros(1_000, 1_000)) == ("price_map", 3_000)
    assert price["d"] is None
    dearest = built.resolve("b").price
    assert dearest is not None
    assert (dearest.worst_input, dearest.worst_output) == (5_000_000, 6_000_000), (
        "fallbacks are reachable too"
    )
    assert built.resolve("e").price is None, "an unpriced fallback leaves no bound"


def test_an_unknown_model_is_a_404_that_helps_without_telling_secrets() -> None:
    built = table(pool("p", UP), model("gpt-4o", {"pool": "p"}), model("secret-project", {"pool": "p"}))
    with pytest.raises(UnknownModelError) as caught:
        built.resolve("gpt4o")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert "Did you mean 'gpt-4o'?" in caught.value.message
    with pytest.raises(UnknownModelError) as hidden:
        built.resolve("secret-projekt", visible=lambda name: name == "gpt-4o")
    assert hidden.value.suggestion is None
    with pytest.raises(UnknownModelError):
        built.resolve("x" * 1_000_000)


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        table(
            pool("p", "ftp://x"),
            pool("q", UP, api_key="${env:NOT_SET_ANYWHERE}"),
            provider("o", "https://u:p@h/v1"),
            provider("tls", "https://h/v1", tls={"ca_file": "/nowhere.pem"}),
            provider("ant", "unix:/run/x.sock", dialect="anthropic"),
            model("a", {"pool": "p"}),
            model("b", {"pool": "gone"}, fallbacks=["nobody"]),
            model("c", {"provider": "gone"}),
        )
    text = caught.value.message
    for part in (
        "Pool/p:",
        "Pool/q: the environment variable NOT_SET_ANYWHERE",
        "Provider/o:",
        "/nowhere.pem",
        "Provider/ant: only the openai dialect",
        "Model/b:",
        "pool 'gone'",
        "provider 'gone'",
    ):
        assert part in text
    assert "Model/a" not in text, "the pool's own fault is told once"
    with pytest.raises(ConfigError, match="fallback 'nobody'"):
        table(pool("p", UP), model("b", {"pool": "p"}, fallbacks=["nobody"]))


def test_secrets_are_resolved_where_they_stand_and_never_shown(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def resolve(reference: str, where: str) -> Secret:
        asked.append((reference, where))
        return Secret("sk-hidden")

    document = ConfigDocument.of(
        [provider("o", "https://h/v1", api_key="${env:A}", secret_headers={"X-K": "${env:B}"})]
    )
    built = RoutingTable.build(document, PriceMap({}), resolve_secret=resolve)
    assert asked == [("${env:A}", "Provider|o|api_key"), ("${env:B}", "Provider|o|secret_headers.X-K")]
    assert "sk-hidden" not in repr(built.places)
    assert dict(built.places["provider:o"].headers) == {
        b"authorization": b"Bearer sk-hidden",
        b"x-k": b"sk-hidden",
    }
    (tmp_path / "key").write_text("sk-file\n")
    assert resolve_plain_reference(f"${{file:{tmp_path / 'key'}}}").reveal() == "sk-file"
    with pytest.raises(ValueError, match="cannot read"):
        resolve_plain_reference("${file:/nowhere}")
    with pytest.raises(ValueError, match="Provider"):
        resolve_plain_reference("${sealed:1}", "Provider|o|api_key")


def test_a_place_whose_secret_is_missing_here_fails_alone() -> None:
    resources: list[AnyResource] = [
        provider(
            "o", "https://h/v1", api_key="${env:NOT_SET_ANYWHERE}", secret_headers={"x-k": "${env:HOME}"}
        ),
        provider("tls", "https://h/v1", tls={"ca_file": "/nowhere.pem"}),
        pool("p", UP),
        model("hosted", {"provider": "o"}, fallbacks=["own"]),
        model("own", {"pool": "p"}),
    ]
    document = ConfigDocument.of(resources)
    built = RoutingTable.build(document, PriceMap({}), lenient=True)
    assert set(built.routes) == {"hosted", "own"}
    assert "NOT_SET_ANYWHERE is not set" in built.places["provider:o"].fault
    assert built.places["provider:o"].headers == (), "no half of what it needs is kept"
    assert "/nowhere.pem" in built.places["provider:tls"].fault
    assert not built.places["pool:p"].fault
    with pytest.raises(ConfigError, match=r"^Provider/o: the environment variable"):
        RoutingTable.build(document, PriceMap({}))


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://api.openai.com/v1", ("https://api.openai.com", "/v1", "")),
        ("http://h:8000/", ("http://h:8000", "", "")),
        (
            "https://x.azure.com/openai/v1?api-version=preview",
            ("https://x.azure.com", "/openai/v1", "api-version=preview"),
        ),
        ("unix:/run/c.sock:/v1", ("unix:/run/c.sock", "/v1", "")),
        ("unix:/run/c.sock", ("unix:/run/c.sock", "", "")),
    ],
)
def test_base_addresses(url: str, parts: tuple[str, str, str]) -> None:
    assert parse_base_url(url) == parts


@pytest.mark.parametrize(
    "url", ["ftp://h", "https://", "unix:relative", "unix:/a:b", "https://u:p@h", "https://h/#x"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_base_url(url)


def test_contracts_are_checked_by_name() -> None:
    built = table(
        pool("p", UP),
        model("m", {"pool": "p"}, contract={"json_schema": False}),
        model("d", {"pool": "p"}, contract={"json_schema": False, "tools": False}, drop_params=True),
    )
    route = built.resolve("m")
    assert route.check(Needs(tools=True)) == ()
    for needs, param in (
        (Needs(json_schema=True), "response_format"),
        (Needs(vision=True), "messages"),
        (Needs(embeddings=True), "model"),
    ):
        with pytest.raises(ContractError) as caught:
            route.check(needs)
        assert (caught.value.param, "'m'" in caught.value.message) == (param, True)
    dropped = built.resolve("d").check(Needs(tools=True, json_schema=True))
    assert dropped == ("tools", "tool_choice", "parallel_tool_calls", "response_format")


def test_a_thousand_models_are_quick() -> None:
    resources = [
        pool("p", UP),
        *[model(f"team/model-{n}", {"pool": "p"}, fallbacks=["team/model-0"]) for n in range(1_000)],
    ]
    document = ConfigDocument.of(resources)
    prices = PriceMap.load()
    started = time.process_time()
    built = RoutingTable.build(document, prices)
    assert time.process_time() - started < 1.0
    started = time.process_time()
    for _ in range(1_000):
        built.resolve("team/model-999")
    assert time.process_time() - started < 0.1
    started = time.process_time()
    with pytest.raises(UnknownModelError):
        built.resolve("team/modell-5")
    assert time.process_time() - started < 0.2
