"""What the simulated model says: tokens, schemas, tools, scripts."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.errors import InvalidRequestError
from routing.sim import tokens, vectors
from routing.sim.answers import Answer, chat_answer, completion_answer
from routing.sim.behaviour import NORMAL, Behaviour, Rules, parse
from routing.sim.patterns import matching
from routing.sim.schema import Generator
from routing.sim.tokens import Prompt


def value_of(schema: Any, words: str = "say hello", seed: int = 1) -> Any:
    return Generator(schema, random.Random(seed), words).value()


def ask(
    body: dict[str, Any] | None = None, choice: int = 0, behaviour: Behaviour = NORMAL, room: int = 10_000
) -> Answer:
    body = {"messages": [{"role": "user", "content": "Hello there"}], **(body or {})}
    return chat_answer("sim/small", body, behaviour, choice, room)


@given(st.text(max_size=300))
def test_tokens_lose_nothing(text: str) -> None:
    pieces = tokens.split(text)
    assert "".join(pieces) == text
    assert tokens.count(text) == len(pieces)
    assert all(pieces)


def test_a_conversation_that_goes_on_keeps_its_blocks() -> None:
    system = "You are careful. " * 20
    answer = tokens.split("It is a long answer, with many words in it. " * 5)
    first = Prompt(["<|system|>\n", system, "<|assistant|>\n"], "m", 16)
    following = Prompt(
        ["<|system|>\n", system, "<|assistant|>\n", "".join(answer), "<|user|>\n", "And?"], "m", 16
    )
    known = first.followed_by(answer)
    assert len(known) > len(first.hashes)
    assert following.hashes[: len(known)] == known
    assert not set(Prompt(["<|system|>\n", system], "other", 16).hashes) & set(first.hashes), (
        "models are kept apart"
    )


def test_default_answer_says_what_it_is_and_repeats_itself() -> None:
    answer = ask()
    assert answer.text is not None
    assert "simulated" in answer.text
    assert "Hello there" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.tokens == len(answer.pieces) == tokens.count(answer.text)
    assert ask().text == answer.text
    assert ask(choice=1).text != answer.text
    assert any(ask({"seed": seed}).text != answer.text for seed in range(5))


def test_limits_and_stops() -> None:
    short = ask({"max_tokens": 5})
    assert (short.tokens, short.finish_reason, len(short.pieces)) == (5, "length", 5)
    assert ask({"max_completion_tokens": 3, "max_tokens": 5}).tokens == 3
    assert ask(room=4).finish_reason == "length"
    stopped = ask({"stop": ["zzz", "answer"]})
    assert stopped.text == "This is a simulated "
    assert stopped.finish_reason == "stop"
    assert ask({"max_tokens": 5}, behaviour=Behaviour(ignore_max_tokens=True)).tokens > 5
    with pytest.raises(InvalidRequestError):
        ask({"max_tokens": 0})
    with pytest.raises(InvalidRequestError):
        ask({"stop": 3})


def test_scripts_say_what_they_are_told() -> None:
    scripted = ask(behaviour=Behaviour(text="abcdefgh", chunks=(1, 3)))
    assert [piece.text for piece in scripted.pieces] == ["a", "bcd", "efg", "h"]
    assert ask(behaviour=Behaviour(tokens=100)).tokens == 100
    call = {"name": "f", "arguments": {"a": "b"}}
    called = ask(behaviour=Behaviour(tool_calls=(call,), chunks=(4,)))
    assert called.finish_reason == "tool_calls"
    assert "".join([piece.text for piece in called.pieces]) == '{"a": "b"}'
    assert called.pieces[0].first is not None
    assert completion_answer("m", "p", {}, Behaviour(text="x"), 0, 10).text == "x"


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SEARCH = {"type": "function", "function": {"name": "search_docs", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}}  # fmt: skip


def tools(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "tools": [WEATHER, SEARCH], **more}


def test_tools_are_called_with_the_users_words() -> None:
    answer = ask(tools("What is the weather in New York for the next 3 days?"))
    assert answer.finish_reason == "tool_calls"
    assert [call.name for call in answer.tool_calls] == ["get_weather"]
    assert json.loads(answer.tool_calls[0].arguments) == {"city": "New York", "days": 3}
    both = ask(tools("search the docs for weather"))
    assert {call.name for call in both.tool_calls} == {"get_weather", "search_docs"}
    assert len({call.id for call in both.tool_calls}) == 2
    assert len(ask(tools("search the docs for weather", parallel_tool_calls=False)).tool_calls) == 1
    named = ask(tools("hi", tool_choice={"type": "function", "function": {"name": "search_docs"}}))
    assert json.loads(named.tool_calls[0].arguments) == {"query": "hi"}
    assert ask(tools("hi", tool_choice="none")).text is not None
    with pytest.raises(InvalidRequestError):
        ask(tools("hi", tool_choice={"type": "function", "function": {"name": "nope"}}))


def test_after_a_tool_result_it_answers_with_it() -> None:
    body = tools("weather in Paris")
    body["messages"] += [
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny, 21 degrees"},
    ]
    answer = ask(body)
    assert answer.text is not None
    assert "get_weather returned: sunny, 21 degrees" in answer.text
    assert answer.finish_reason == "stop"
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    structured = ask(
        {**body, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    )
    jsonschema.validate(json.loads(structured.text or ""), schema)


def test_json_object_and_a_missing_schema() -> None:
    assert json.loads(ask({"response_format": {"type": "json_object"}}).text or "")["simulated"] is True
    with pytest.raises(InvalidRequestError):
        ask({"response_format": {"type": "json_schema"}})


PERSON = {
    "type": "object",
    "$defs": {
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": r"^\d{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "node": {
            "type": "object",
            "properties": {
                "label": {"type": "string", "maxLength": 5},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "parent": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["label", "children", "parent"],
            "additionalProperties": False,
        },
    },
    "properties": {
        "kind": {"const": "person"},
        "colour": {"enum": ["red", "green", None]},
        "age": {"type": "integer", "minimum": 18, "exclusiveMaximum": 21},
        "score": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.25},
        "emails": {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 1, "maxItems": 2},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 4, "uniqueItems": True},
        "nick": {"type": ["string", "null"]},
        "home": {"$ref": "#/$defs/address"},
        "tree": {"$ref": "#/$defs/node"},
        "either": {"anyOf": [{"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}, {"type": "integer"}]},
        "both": {"allOf": [{"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, {"properties": {"b": {"const": 2}}, "required": ["b"]}]},
    },
    "required": ["kind", "colour", "age", "score", "emails", "tags", "nick", "home", "tree", "either"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_rich_schema_is_satisfied(seed: int) -> None:
    made = value_of(PERSON, "I want 19 red things", seed)
    jsonschema.Draft202012Validator(PERSON).validate(made)
    assert made["colour"] == "red", "the user's words choose"
    assert made["age"] == 19


SIMPLE = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.fixed_dictionaries({"enum": st.lists(st.one_of(st.integers(), st.text(max_size=5)), min_size=1, max_size=4)}),
    st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, st.integers(-99, 99), st.integers(-99, 99)),
    st.builds(lambda a, n: {"type": "integer", "exclusiveMinimum": a, "maximum": a + n}, st.integers(-99, 99), st.integers(1, 9)),
    st.builds(lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 30), st.integers(0, 30)),
    st.builds(lambda k, m: {"type": "integer", "multipleOf": k, "minimum": m}, st.integers(1, 9), st.integers(-50, 50)),
    st.builds(lambda f: {"type": "string", "format": f}, st.sampled_from(["date", "email", "uuid", "ipv4", "date-time"])),
)  # fmt: skip


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from("abcdef"), children, max_size=4)
    return st.one_of(
        properties.map(
            lambda p: {
                "type": "object",
                "properties": p,
                "required": sorted(p),
                "additionalProperties": False,
            }
        ),
        st.builds(
            lambda i, n: {"type": "array", "items": i, "minItems": n, "maxItems": n + 2},
            children,
            st.integers(0, 3),
        ),
        st.lists(children, min_size=1, max_size=3).map(lambda c: {"anyOf": c}),
        children.map(lambda c: {"anyOf": [c, {"type": "null"}]}),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.recursive(SIMPLE, nested, max_leaves=12), st.text(max_size=80), st.integers(0, 5))
def test_every_schema_is_satisfied(schema: dict[str, Any], words: str, seed: int) -> None:
    made = json.loads(json.dumps(value_of(schema, words, seed)))
    jsonschema.Draft202012Validator(schema).validate(made)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{5}$",
        r"^[A-Z]{2}-\d+$",
        r"(red|green)",
        r"^[^abc]x?$",
        r"^\w+@\w+\.com$",
        r"^a{2,4}$",
        r"\s\S",
        "^$",
    ],
)
def test_simple_patterns_are_matched(pattern: str) -> None:
    for seed in range(10):
        made = matching(pattern, random.Random(seed))
        assert made is not None
        assert re.search(pattern, made)


@pytest.mark.parametrize("pattern", ["(", r"(?=a)b", r"(a)\1{9999999}", "(?<=x)y"])
def test_patterns_beyond_it_are_left(pattern: str) -> None:
    assert matching(pattern, random.Random(1)) is None


@pytest.mark.parametrize(
    "schema", [True, {}, {"$ref": "#/nope"}, {"$ref": "#"}, {"type": []}, {"anyOf": [{"type": "null"}]}]
)
def test_odd_schemas_come_to_an_end(schema: Any) -> None:
    json.dumps(value_of(schema))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("latency_ms=20; error_rate=0.5;no_done", Behaviour(latency_ms=20, error_rate=0.5, no_done=True)),
        ('{"text": "a;b=c", "chunks": [1, 2]}', Behaviour(text="a;b=c", chunks=(1, 2))),
        ({"status": "429", "retry_after": 3}, Behaviour(status=429, retry_after=3.0)),
        ("chunks=3,1", Behaviour(chunks=(3, 1))),
        ({"lie_usage": {"prompt_tokens": 1}}, Behaviour(lie_usage={"prompt_tokens": 1})),
        ("lie_usage=0.5", Behaviour(lie_usage=0.5)),
        ({"tool_calls": [{"name": "f"}]}, Behaviour(tool_calls=({"name": "f"},))),
    ],
)
def test_behaviours_are_read(source: Any, expected: Behaviour) -> None:
    assert parse(source, "x-sim") == expected


@pytest.mark.parametrize(
    "source",
    [
        "explode=1",
        "{",
        "[1]",
        3,
        {"chunks": [0]},
        {"latency_ms": "soon"},
        {"tool_calls": [{}]},
        {"status": "x"},
    ],
)
def test_wrong_behaviours_are_refused_by_name(source: Any) -> None:
    with pytest.raises(InvalidRequestError, match="x-sim"):
        parse(source, "x-sim")


def test_rules_match_models_and_count_down() -> None:
    rules = Rules()
    rules.add({"status": 500})
    rules.add({"model": "a", "next": 2, "status": 429})
    assert [(rules.take("a") or NORMAL).status for _ in range(3)] == [429, 429, 500]
    assert (rules.take("b") or NORMAL).status == 500
    assert rules.describe() == [{"model": None, "next": None, "status": 500}]
    rules.clear()
    assert rules.take("a") is None
    with pytest.raises(InvalidRequestError):
        rules.add({"next": 0, "status": 500})


def test_embeddings_are_unit_vectors_and_like_texts_are_near() -> None:
    def near(a: str, b: str) -> float:
        return sum([x * y for x, y in zip(vectors.embed(a, 384), vectors.embed(b, 384), strict=True)])

    assert near("the cat sat", "the cat sat") == pytest.approx(1)
    assert (
        near("the cat sat on the mat", "a cat on a mat")
        > near("the cat sat on the mat", "quarterly revenue grew") + 0.1
    )
    assert vectors.embed("", 3) == [1.0, 0.0, 0.0]
