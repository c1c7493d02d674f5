"""Messages to chat completions and back, without a network; forms are judged by Anthropic's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from airi.errors import InvalidRequestError
from gateway.dialects.anthropic.answer import to_message
from gateway.dialects.anthropic.request import to_chat
from gateway.dialects.anthropic.stream import MessageStream
from gateway.dialects.chat import completion_of
from gateway.errors import UpstreamStreamError
from gateway.operations import check_chat
from gateway.usage import Usage

_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
BASE: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def events(wire: bytes) -> list[dict[str, Any]]:
    """The events of a stream; each must be one of Anthropic's, under its own name."""
    found = []
    for block in wire.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        _EVENT.validate_python(parsed, strict=False)
        found.append(parsed)
    return found


def chunk(delta: dict[str, Any], **choice: Any) -> bytes:
    body = {"id": "c", "model": "up", "choices": [{"index": 0, "delta": delta, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(**fields: int) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": fields}).encode() + b"\n\n"


def call(index: int, arguments: str, name: str | None = None) -> bytes:
    function: dict[str, Any] = {"arguments": arguments}
    piece: dict[str, Any] = {"index": index, "function": function}
    if name is not None:
        function["name"] = name
        piece["id"] = f"call_{index}"
    return chunk({"tool_calls": [piece]})


def test_a_whole_conversation_becomes_chat() -> None:
    body = {
        "model": "m",
        "max_tokens": 100,
        "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["END"],
        "temperature": 0.5,
        "top_k": 7,
        "metadata": {"user_id": "ann"},
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": 4096},
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                    {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "it"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "A cat"}]},
                    {"type": "tool_result", "tool_use_id": "t2", "content": "broke", "is_error": True},
                    {"type": "text", "text": "So?"},
                ],
            },
        ],
    }  # fmt: skip
    chat = to_chat(body)
    check_chat(chat)
    assert chat == {
        "model": "m",
        "max_tokens": 100,
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 7,
        "user": "ann",
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_effort": "medium",
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                ],
            },
            {
                "role": "assistant",
                "content": "I look.",
                "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
                "tool_calls": [
                    {
                        "id": "t1",
                        "type": "function",
                        "function": {"name": "look", "arguments": '{"at":"it"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "A cat"},
            {"role": "tool", "tool_call_id": "t2", "content": "The tool failed: broke"},
            {"role": "user", "content": "So?"},
        ],
    }


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            "messages.0.content.0.source.type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "whatever"}}, "tool_choice.type"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"n": 3}, "n"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "heroic"}}, "output_config.effort"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"metadata": {"user_id": 1}}, "metadata.user_id"),
    ],
)
def test_what_cannot_be_translated_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        to_chat({**BASE, **change})
    assert caught.value.param == param


def test_with_drop_params_what_only_anthropic_has_is_left_out() -> None:
    chat = to_chat(
        {
            **BASE,
            "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
            "mcp_servers": [{"url": "x"}],
            "tools": [{"type": "bash_20250124", "name": "bash"}],
        },
        drop=True,
    )
    assert chat == {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def test_a_whole_answer_becomes_a_message() -> None:
    answer = {
        "id": "c",
        "model": "up",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "I look.",
                    "reasoning_content": "Hm.",
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "look", "arguments": '{"at": 1}'},
                        },
                        {"id": "b", "type": "function", "function": {"name": "look", "arguments": "{"}},
                    ],
                },
            }
        ],
    }
    message = to_message(completion_of(answer), Usage(10, 5, cached_tokens=4, reasoning_tokens=2), "asked")
    Message.model_validate(message)
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][2]["input"] == {"at": 1}
    assert message["content"][3]["input"] == {"invalid_json": "{"}
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["input_tokens"] == 6
    assert message["usage"]["cache_read_input_tokens"] == 4
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"finish_reason": "stop"}, "end_turn"),
        ({"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence"),
        ({"finish_reason": "stop", "stop_reason": 128001}, "end_turn"),
        ({"finish_reason": "length"}, "max_tokens"),
        ({"finish_reason": "content_filter"}, "refusal"),
        ({"finish_reason": "something new"}, "end_turn"),
    ],
)
def test_why_it_ended(choice: dict[str, Any], reason: str) -> None:
    answer = {"choices": [{"message": {"content": "x"}, **choice}]}
    message = to_message(completion_of(answer), Usage(), "m")
    assert message["stop_reason"] == reason
    assert message["stop_sequence"] == ("END" if reason == "stop_sequence" else None)


def test_a_stream_of_thinking_text_and_tools() -> None:
    stream = MessageStream("asked", 3)
    wire = stream.feed(
        chunk({"role": "assistant", "content": ""})
        + b": a comment\n\n"
        + chunk({"reasoning_content": "Hm"})
        + chunk({"content": "I "})
    )
    wire += stream.feed(chunk({"content": "look."}) + call(0, "", "look") + call(0, '{"at"'))
    wire += stream.feed(
        call(0, ": 1}") + call(1, '{"at": 2}', "look") + chunk({}, finish_reason="tool_calls")
    )
    wire += stream.feed(usage(prompt_tokens=11, completion_tokens=7) + b"data: [DONE]\n\n") + stream.end()
    found = events(wire)
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    starts = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use", "tool_use"]
    assert found[0]["message"]["model"] == "up"
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    assert found[-2]["usage"]["input_tokens"] == 11
    assert found[-2]["usage"]["output_tokens"] == 7


def test_thoughts_without_a_signature_are_not_sent_on() -> None:
    thoughts = [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "thinking", "thinking": "Oh."},
    ]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": thoughts}]
    chat = to_chat({"model": "m", "max_tokens": 9, "messages": turns})
    assert chat["messages"][1] == {"role": "assistant", "content": ""}


def test_blocks_of_thinking_keep_their_signatures_and_ciphers() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s1"},
        {"type": "redacted_thinking", "data": "Y2lwaGVy"},
        {"type": "thinking", "thinking": "", "signature": "s2"},
    ]
    said = {"content": "x", "reasoning_content": "Hm.", "thinking_blocks": blocks}
    answer = {"choices": [{"message": said, "finish_reason": "stop"}]}
    assert to_message(completion_of(answer), Usage(), "m")["content"][:3] == blocks
    stream = MessageStream("asked", 3)
    pieces: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": "H"}, {"type": "thinking", "thinking": "m."},
        {"type": "thinking", "thinking": "", "signature": "s1"}, blocks[1], blocks[2],
    ]  # fmt: skip
    wire = b"".join(
        stream.feed(chunk({"thinking_blocks": [piece], "reasoning_content": piece.get("thinking")}))
        for piece in pieces
    )
    found = events(wire + stream.feed(chunk({"content": "x"}, finish_reason="stop")) + stream.end())
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["thinking", "redacted_thinking", "thinking", "text"]
    assert starts[1] == blocks[1]
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Hm."
    assert [delta["signature"] for delta in deltas if delta["type"] == "signature_delta"] == ["s1", "s2"]


@given(st.data())
def test_tool_calls_in_turns_arrive_one_after_the_other(data: st.DataObject) -> None:
    wanted = {0: '{"city": "Rome", "n": 1}', 1: '{"city": "Bern"}', 2: "{}"}
    pieces: list[tuple[int, str]] = []
    for index, text in wanted.items():
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
        pieces += [(index, text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    keyed = data.draw(st.permutations(pieces))
    rest = {index: [text for i, text in pieces if i == index] for index in wanted}
    stream = MessageStream("m", 1)
    wire = b""
    named: set[int] = set()
    for index, _ in keyed:
        wire += stream.feed(call(index, rest[index].pop(0), None if index in named else f"tool{index}"))
        named.add(index)
    found = events(wire + stream.end())
    blocks: dict[int, list[str]] = {}
    names = []
    for event in found:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            names.append(event["content_block"]["name"])
            blocks[event["index"]] = []
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1, "a delta for a block that is not open"
            blocks[event["index"]].append(event["delta"]["partial_json"])
    texts = {name: "".join(parts) for name, parts in zip(names, blocks.values(), strict=True)}
    assert texts == {f"tool{index}": text for index, text in wanted.items()}


def test_an_empty_stream_is_a_message_all_the_same() -> None:
    assert [event["type"] for event in events(MessageStream("m", 1).end())] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


def test_what_is_no_chunk_breaks_the_stream() -> None:
    with pytest.raises(UpstreamStreamError):
        MessageStream("m", 1).feed(b"data: hello\n\n")
    with pytest.raises(UpstreamStreamError):
        MessageStream("m", 1).feed(b'data: {"choices": [{"delta": {"content": 7}}]}\n\n')


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "text", "role", "content", "source", "id", "name", "input", "data", "url", "tool_use_id"]
    ) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*BASE, "system", "tools", "tool_choice", "thinking", "metadata",
                                        "output_config", "stop_sequences", "stream", "top_k"]), _JSON))  # fmt: skip
def test_any_body_is_translated_or_refused(change: dict[str, Any]) -> None:
    try:
        chat = to_chat({**BASE, **change})
        check_chat(chat)
    except InvalidRequestError:
        return
