"""Policies over answers of the Responses API: what streams is what stands in the whole, however it is cut."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from policies.engine import CallFacts, PolicyEngine, ResponseGuard
from policies.errors import PolicyDeniedError
from tests.support import responses_server as upstream

ASKED = {"model": "m", "store": False}
OUTPUT = [
    upstream.reasoning("Ann's address is ann@example.com, I think."),
    upstream.search("who is ann@example.com"),
    upstream.message("Write to ann@example.com or bob@example.org."),
    upstream.call('{"to": "ann\\u0040example.com", "n": 1}'),
]


def guard(stream: bool = True, **policy: object) -> ResponseGuard:
    made = {"effect": "redact", "detectors": [{"id": "email"}], "stages": ["response"], **policy}
    resource = Policy.model_validate({"kind": "Policy", "metadata": {"name": "p"}, **made})
    chosen = PolicyEngine.compile(ConfigDocument.of([resource])).select("t", "", "k", "m")
    found = chosen.response_guard(CallFacts(tenant="t"), "chat", stream)
    assert found is not None
    return found


def numbered(output: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    events = upstream.events_of(ASKED, output, "completed", size)
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def through(watching: ResponseGuard, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for event in events for each in watching.feed_event(event)]


def joined(events: list[dict[str, Any]]) -> dict[tuple[Any, ...], str]:
    """What a client that listens to the pieces alone has in the end."""
    texts: dict[tuple[Any, ...], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["item_id"], event.get("content_index"), event.get("summary_index"))
            texts[key] = texts.get(key, "") + event["delta"]
    return texts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_a_stream_says_what_the_whole_says(size: int) -> None:
    whole = guard(stream=False)
    expected = whole.whole(upstream.response(ASKED, OUTPUT))
    assert "example" not in json.dumps(expected["output"])
    watching = guard()
    events = through(watching, numbered(OUTPUT, size))
    assert "example" not in json.dumps(events)
    assert events[-1]["response"] == expected
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    texts = joined(events)
    assert texts["msg_up", 0, None] == "Write to [EMAIL] or [EMAIL]."
    assert texts["rs_up", None, 0] == "Ann's address is [EMAIL], I think."
    assert json.loads(texts["fc_up", None, None]) == {"to": "[EMAIL]", "n": 1}
    done = {event["type"]: event for event in events}
    assert done["response.output_text.done"]["text"] == texts["msg_up", 0, None]
    assert done["response.function_call_arguments.done"]["arguments"] == texts["fc_up", None, None]
    assert done["response.content_part.done"]["part"]["text"] == texts["msg_up", 0, None]
    assert watching.decision.detections == whole.decision.detections == {"pii.email": 5}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(["a", " ", "ann@example.com", "@", "é", "😀", ".", "\n", "x@y"]), max_size=8),
    st.integers(1, 9),
)
def test_any_text_in_any_pieces(words: list[str], size: int) -> None:
    text = "".join(words)
    output = [upstream.message(text), upstream.call(json.dumps({"said": text}))]
    expected = guard(stream=False).whole(upstream.response(ASKED, output))
    events = through(guard(), numbered(output, size))
    assert events[-1]["response"] == expected
    texts = joined(events)
    assert texts.get(("msg_up", 0, None), "") == expected["output"][0]["content"][0]["text"]
    assert texts["fc_up", None, None] == expected["output"][1]["arguments"]


def test_nothing_is_changed_where_nothing_is_found() -> None:
    output = [upstream.message("Nothing here.", [{"type": "url_citation", "start_index": 0, "end_index": 3}])]
    events = numbered(output, 3)
    before = copy.deepcopy(events)
    out = through(guard(), events)
    assert events == before
    assert joined(out) == joined(before)
    assert [event["type"] for event in out if not event["type"].endswith(".delta")] == [
        event["type"] for event in before if not event["type"].endswith(".delta")
    ]
    assert out[-1]["response"] == before[-1]["response"]
    # What no policy knows of an event passes with it; what was held back comes in an event of its own.
    padding = [event.get("obfuscation") for event in out if event["type"] == "response.output_text.delta"]
    assert set(padding) <= {"x7", None}
    assert "x7" in padding


def test_marks_of_a_text_that_was_redacted_go_with_it() -> None:
    marked = upstream.message(
        "Write to ann@example.com now.", [{"type": "url_citation", "start_index": 25, "end_index": 28}]
    )
    marked["content"][0]["logprobs"] = [
        {"token": "ann@example.com", "logprob": -1.0, "bytes": [], "top_logprobs": []}
    ]
    whole = guard(stream=False).whole(upstream.response(ASKED, [marked]))
    part = whole["output"][0]["content"][0]
    assert (part["text"], part["annotations"], part["logprobs"]) == ("Write to [EMAIL] now.", [], [])
    events = through(guard(), numbered([marked], 4))
    assert "example" not in json.dumps(events)
    assert not [event for event in events if event["type"].endswith("annotation.added")]
    assert events[-1]["response"] == whole


def test_a_denying_policy_stops_the_stream_before_the_word_is_out() -> None:
    events = numbered([upstream.message("All is well and then xyzzy comes.")], 4)
    for stages in (["response"], ["prompt", "response"]):
        watching = guard(
            effect="deny", stages=stages, when='data.counts["word"] > 0',
            detectors=[{"id": "words", "words": ["xyzzy"]}],
        )  # fmt: skip
        out: list[dict[str, Any]] = []
        with pytest.raises(PolicyDeniedError):
            out.extend(each for event in events for each in watching.feed_event(event))
        assert "xyzzy" not in "".join(joined(out).values())
        assert "All is well" in "".join(joined(out).values())


def test_text_that_was_never_streamed_is_judged_where_it_is_first_told() -> None:
    late = {
        "id": "mcp_up", "type": "mcp_call", "name": "find", "server_label": "s",
        "arguments": '{"who": "ann@example.com"}', "output": "She is ann@example.com.",
    }  # fmt: skip
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.done", "sequence_number": 0, "output_index": 0, "item": late},
        {
            "type": "response.completed", "sequence_number": 1,
            "response": upstream.response(ASKED, [late]),
        },
    ]  # fmt: skip
    watching = guard()
    out = through(watching, events)
    assert "example" not in json.dumps(out)
    assert out[0]["item"] == out[1]["response"]["output"][0]
    assert watching.decision.detections == {"pii.email": 2}


def test_a_stream_that_leaves_out_the_ends_of_its_texts_is_told_whole_all_the_same() -> None:
    events = [event for event in numbered(OUTPUT, 5) if not event["type"].endswith(".done")]
    out = through(guard(), events)
    assert joined(out)["msg_up", 0, None] == "Write to [EMAIL] or [EMAIL]."
    assert "example" not in json.dumps(out)
