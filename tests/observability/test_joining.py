"""Streams put together again."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from observability.joining import join_events


def stream(*chunks: dict[str, Any]) -> bytes:
    return (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    )


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": index, "delta": fields, "finish_reason": finish}],
    }


def test_text_of_interleaved_choices_and_usage() -> None:
    usage = {"prompt_tokens": 3}
    joined = join_events(
        stream(
            delta(0, role="assistant", content="He"),
            delta(1, content="Ho"),
            delta(0, content="llo"),
            delta(1, "length", content="la"),
            delta(0, "stop"),
            {"id": "c1", "choices": [], "usage": usage},
        )
    )
    assert joined is not None
    assert [(c["message"]["content"], c["finish_reason"]) for c in joined["choices"]] == [
        ("Hello", "stop"),
        ("Hola", "length"),
    ]
    assert (joined["object"], joined["id"], joined["usage"]) == ("chat.completion", "c1", usage)


def test_tool_calls_are_joined_by_index() -> None:
    def part(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function}

    joined = join_events(
        stream(
            delta(tool_calls=[{**part(0, name="find", arguments=""), "id": "t0"}]),
            delta(tool_calls=[part(1, name="sum", arguments='{"a'), part(0, arguments='{"q":')]),
            delta(finish="tool_calls", tool_calls=[part(0, arguments='"x"}'), part(1, arguments='":1}')]),
        )
    )
    assert joined is not None
    calls = joined["choices"][0]["message"]["tool_calls"]
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("find", '{"q":"x"}'),
        ("sum", '{"a":1}'),
    ]
    assert calls[0]["id"] == "t0"


def test_what_was_cut_gives_what_arrived() -> None:
    whole = stream(delta(content="abc"), delta(content="def"))
    joined = join_events(whole[: whole.index(b"def")])
    assert joined is not None
    assert joined["choices"][0]["message"]["content"] == "abc"
    assert join_events(b"") is None
    assert join_events(b": ping\n\n") is None


@given(st.binary())
def test_any_bytes_are_read_without_a_fault(data: bytes) -> None:
    join_events(data)
    join_events(b"data: " + data)
