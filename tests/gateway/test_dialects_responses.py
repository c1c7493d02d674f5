"""The Responses API to chat completions and back, without a network; forms are judged by OpenAI's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from sqlalchemy import Engine

from airi.clock import unix_ms
from airi.content import ContentStore
from airi.errors import InvalidRequestError
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.storage import prepare
from airi.stored_responses import Reader, ResponseNotFoundError, ResponseStore
from gateway.control.model_routes import page
from gateway.dialects.chat import completion_of
from gateway.dialects.counting import count
from gateway.dialects.responses.answer import Asked, output_of
from gateway.dialects.responses.items import input_items
from gateway.dialects.responses.request import to_chat
from gateway.dialects.responses.stream import ResponseStream
from gateway.errors import UpstreamStreamError
from gateway.operations import check_chat
from gateway.usage import Usage

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
DAY_MS = 86_400_000


def chat_of(body: dict[str, Any], *, drop: bool = False) -> dict[str, Any]:
    chat = to_chat({"model": "m", **body}, input_items(body.get("input")), drop=drop)
    check_chat(chat)
    return chat


def events(wire: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each must be one of OpenAI's, in sequence, under its own name."""
    found = []
    for number, block in enumerate(wire.decode().removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        assert parsed["sequence_number"] == number
        _EVENT.validate_python(parsed)
        found.append(parsed)
    return found


def chunk(delta: dict[str, Any], **choice: Any) -> bytes:
    body = {"id": "c", "choices": [{"index": 0, "delta": delta, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def test_a_whole_conversation_becomes_chat() -> None:
    body = {
        "instructions": "Be kind.",
        "input": [
            {"role": "developer", "content": "And brief."},
            {"role": "user", "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
             "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"at": 1}'},
            {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "ls"},
            {"type": "function_call_output", "call_id": "c1", "output": "A cat"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "x"}]},
            {"role": "user", "content": "So?"},
        ],
        "tools": [
            {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True},
            {"type": "custom", "name": "run", "format": {"type": "grammar", "syntax": "lark", "definition": "s"}},
        ],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": False, "max_output_tokens": 9, "temperature": 0.5, "user": "ann", "top_k": 3,
        "reasoning": {"effort": "low", "summary": "auto"}, "metadata": {"a": "b"}, "store": False, "stream": True,
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "s", "schema": {}, "strict": True}},
        "include": ["reasoning.encrypted_content"], "truncation": "disabled", "background": False,
    }  # fmt: skip
    assert chat_of(body) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be kind.\n\nAnd brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}},
            ]},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
                {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "ls"}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "A cat"},
            {"role": "tool", "tool_call_id": "c2", "content": "x"},
            {"role": "user", "content": "So?"},
        ],
        "parallel_tool_calls": False, "temperature": 0.5, "user": "ann", "top_k": 3, "max_tokens": 9,
        "stream": True, "stream_options": {"include_usage": True}, "reasoning_effort": "low", "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "strict": True}},
        "tools": [
            {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}, "strict": True}},
            {"type": "custom", "custom": {"name": "run", "format": {
                "type": "grammar", "grammar": {"syntax": "lark", "definition": "s"}}}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.file_id",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"store": "yes"}, "store"),
        ({"instructions": ["x"]}, "instructions"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"top_logprobs": 99}, "top_logprobs"),
    ],
)
def test_what_cannot_be_translated_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat_of({"input": "hi", **change})
    assert caught.value.param == param


def test_with_drop_params_hosted_tools_are_left_out() -> None:
    chat = chat_of(
        {"input": "hi", "background": True, "tools": [{"type": "web_search"}], "tool_choice": "auto"},
        drop=True,
    )
    assert chat == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_allowed_tools_narrow_the_choice() -> None:
    tools = [{"type": "function", "name": name, "parameters": {}} for name in "ab"]
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "b"}],
    }
    chat = chat_of({"input": "hi", "tools": tools, "tool_choice": allowed})
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["b"]
    assert chat["tool_choice"] == "required"


def test_a_whole_answer_becomes_a_response() -> None:
    said = {
        "role": "assistant", "content": "I look.", "reasoning": "Hm.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "ls"}},
        ],
    }  # fmt: skip
    answer = {"choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}]}
    output, reason = output_of(completion_of(answer))
    body = {"model": "m", "metadata": {"a": "b"}, "tools": [{"type": "function", "name": "look"}]}
    response = Asked.of(body).ended(reason, output, Usage(9, 4, 2, 1))
    Response.model_validate(response)
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "custom_tool_call"]
    assert response["status"] == "completed"
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 2
    assert response["usage"]["total_tokens"] == 13
    assert response["metadata"] == {"a": "b"}


def test_a_stream_of_thought_text_refusal_and_tools() -> None:
    stream = ResponseStream(Asked.of({"model": "m"}), 3)
    wire = stream.feed(
        chunk({"role": "assistant", "content": ""})
        + chunk({"reasoning_content": "Hm"})
        + chunk({"content": "I "})
    )
    wire += stream.feed(chunk({"content": "look."}) + chunk({"refusal": "No."}))
    pieces = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 1, "id": "c2", "type": "custom", "custom": {"name": "run", "input": "l"}},
        {"index": 0, "function": {"arguments": "{}"}},
        {"index": 1, "custom": {"input": "s"}},
    ]  # fmt: skip
    for piece in pieces:
        wire += stream.feed(chunk({"tool_calls": [piece]}))
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}\n\n'
    wire += stream.feed(chunk({}, finish_reason="tool_calls") + usage + b"data: [DONE]\n\n")
    response = stream.finish()
    found = events(wire + stream.last(response))
    kinds = [event["type"].removeprefix("response.") for event in found]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "content_part.added", "refusal.delta", "refusal.done", "content_part.done",
        "output_item.done",
        "output_item.added", "output_item.added", "custom_tool_call_input.delta", "function_call_arguments.delta",
        "custom_tool_call_input.delta", "function_call_arguments.done", "output_item.done",
        "custom_tool_call_input.done", "output_item.done", "completed",
    ]  # fmt: skip
    Response.model_validate(response)
    assert [item["type"] for item in response["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
    ]
    assert [part["type"] for part in response["output"][1]["content"]] == ["output_text", "refusal"]
    assert response["output"][2]["arguments"] == "{}"
    assert response["output"][3]["input"] == "ls"
    assert response["usage"]["output_tokens"] == 7
    by_item: dict[str, str] = {}
    for event in found:
        if event["type"].endswith(".delta"):
            by_item[event["item_id"]] = by_item.get(event["item_id"], "") + event["delta"]
        if event["type"].endswith(("arguments.done", "input.done")):
            assert by_item[event["item_id"]] == event.get("arguments", event.get("input"))


def test_a_stream_cut_at_its_limit_is_incomplete() -> None:
    stream = ResponseStream(Asked.of({"model": "m"}), 3)
    wire = stream.feed(chunk({"content": "I"}) + chunk({}, finish_reason="length"))
    response = stream.finish()
    assert events(wire + stream.last(response))[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_a_stream_that_fails_says_so() -> None:
    stream = ResponseStream(Asked.of({"model": "m"}), 3)
    wire = stream.feed(chunk({"content": "I"})) + stream.fail(UpstreamStreamError("It broke."))
    last = events(wire)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "It broke."}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "text", "role", "content", "output", "id", "name", "arguments", "format", "call_id", "effort"]
    ) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["input", "instructions", "tools", "tool_choice", "text", "reasoning", "metadata",
                                        "include", "stream", "store", "top_logprobs", "max_output_tokens"]), _JSON))  # fmt: skip
def test_any_body_is_translated_or_refused(change: dict[str, Any]) -> None:
    try:
        chat_of({"input": "hi", **change})
    except InvalidRequestError:
        return


@pytest.fixture
def store(any_engine: Engine) -> ResponseStore:
    prepare(any_engine)
    return ResponseStore(any_engine, ContentStore(any_engine, KeyRing([Secret("c" * 40)])))


def saved(store: ResponseStore, owner: Reader, number: int, previous: str | None = None) -> str:
    response = {"id": f"resp_{number}", "previous_response_id": previous, "output": [{"o": number}]}
    store.save(owner, response, [{"i": number}])
    return f"resp_{number}"


def test_stored_responses_belong_to_their_team(store: ResponseStore) -> None:
    red, blue = Reader("acme", "red", "k1"), Reader("acme", "blue", "k2")
    head, stranger = Reader("acme", "", "k3", all_teams=True), Reader("other", "red", "k4", all_teams=True)
    first = saved(store, red, 1)
    second = saved(store, red, 2, first)
    assert store.history(red, second) == [{"i": 1}, {"o": 1}, {"i": 2}, {"o": 2}]
    assert store.load(head, second).input == [{"i": 2}]
    for reader in (blue, stranger):
        with pytest.raises(ResponseNotFoundError):
            store.load(reader, second)
        with pytest.raises(ResponseNotFoundError):
            store.remove(reader, second)
    store.remove(red, first)
    with pytest.raises(ResponseNotFoundError) as gone:
        store.history(red, second)
    assert gone.value.code == "previous_response_not_found"


def test_stored_responses_go_after_thirty_days(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    red = Reader("acme", "red", "k1")
    saved(store, red, 1)
    assert store.sweep(1) == 0
    later = unix_ms() + 31 * DAY_MS
    monkeypatch.setattr("airi.stored_responses.unix_ms", lambda: later)
    with pytest.raises(ResponseNotFoundError):
        store.load(red, "resp_1")
    assert store.sweep(later) == 1


def test_items_are_listed_by_pages() -> None:
    items = [{"id": f"i{number}"} for number in range(5)]
    first = page(items, 2, "asc", None)
    assert ([item["id"] for item in first["data"]], first["has_more"]) == (["i0", "i1"], True)
    assert [item["id"] for item in page(items, 9, "asc", "i1")["data"]] == ["i2", "i3", "i4"]
    assert page(items, 1, "desc", None)["first_id"] == "i4"
    with pytest.raises(InvalidRequestError):
        page(items, 1, "asc", "nobody")


def test_tokens_are_estimated_without_a_network() -> None:
    chat = {"messages": [{"role": "user", "content": "hello world"}]}
    assert count(chat) == 2 + 2 + 4 + 3
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    seen = count(
        {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": "hello world"}]}]}
    )
    assert seen == count(chat) + 1_000
