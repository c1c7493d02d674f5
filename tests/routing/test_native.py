"""Places that speak the Responses API too: who is sent which form."""

from __future__ import annotations

import io

import msgspec
import pytest
from pydantic import ValidationError

from routing.native import NativeForm
from routing.pool import Place
from routing.specs import Endpoint, PlaceSpec, provider_spec, resolve_plain_reference
from tests.routing.build import model, pool, provider, table

UP = "http://127.0.0.1:9"


def test_a_route_can_be_narrowed_to_targets_that_speak_responses() -> None:
    built = table(
        provider("both", f"{UP}/v1", responses=True),
        provider("chat", f"{UP}/chat/v1"),
        pool("engines", UP, responses=True),
        model("mixed", {"provider": "both"}, {"provider": "chat"}, {"pool": "engines"}, fallbacks=["plain", "sure"]),
        model("plain", {"provider": "chat"}),
        model("sure", {"pool": "engines"}),
        model("behind", {"provider": "chat"}, fallbacks=["plain", "sure"]),
    )  # fmt: skip
    mixed = built.resolve("mixed").of_responses_alone()
    assert mixed is not None
    assert [target.place for target in mixed.targets] == ["provider:both", "pool:engines"]
    assert [fallback.alias for fallback in mixed.fallbacks] == ["sure"]
    assert built.resolve("plain").of_responses_alone() is None
    behind = built.resolve("behind").of_responses_alone()
    assert behind is not None
    assert (behind.alias, behind.fallbacks) == ("sure", ())
    assert not built.resolve("behind").speaks_responses
    assert built.resolve("mixed").speaks_responses


def test_only_openais_dialect_can_speak_it() -> None:
    with pytest.raises(ValidationError, match="'responses' goes with dialect 'openai'"):
        provider("claude", UP, dialect="anthropic", responses=True)


def test_a_place_that_learns_to_speak_it_is_called_anew() -> None:
    made: list[PlaceSpec] = []

    def connect(spec: PlaceSpec, endpoint: Endpoint) -> object:
        made.append(spec)
        return io.BytesIO()

    before = provider_spec(provider("p", f"{UP}/v1"), resolve_plain_reference)
    place = Place(before, connect, lambda: 0.0)
    place.reconfigure(before)
    assert len(made) == 1
    place.reconfigure(provider_spec(provider("p", f"{UP}/v1", responses=True), resolve_plain_reference))
    assert [spec.responses for spec in made] == [False, True]


def test_the_native_form_loses_what_the_contract_excludes_under_its_own_names() -> None:
    body = {
        "model": "a",
        "input": "x",
        "tools": [1],
        "text": {"format": {"type": "json_schema"}, "verbosity": "low"},
    }
    form = NativeForm(body, {"max_output_tokens": 5})
    whole = msgspec.json.decode(form.encode("m"))
    assert whole == {**body, "model": "m", "max_output_tokens": 5}
    less = msgspec.json.decode(form.encode("m", ("tools", "tool_choice", "response_format")))
    assert less == {"model": "m", "input": "x", "text": {"verbosity": "low"}, "max_output_tokens": 5}
    assert msgspec.json.decode(form.encode("m")) == whole
