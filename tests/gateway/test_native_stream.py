"""A Responses stream of an upstream: however its bytes are cut, and whatever ends it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dialects.responses import native_stream
from gateway.dialects.responses.native_stream import NativeRelay
from gateway.errors import UpstreamStreamError
from tests.support import responses_server as upstream

ASKED = {"model": "m", "store": False}
OUTPUT = [upstream.message("High tide, 😀."), upstream.call('{"a": "b"}')]


def signed(response: dict[str, Any]) -> dict[str, Any]:
    return {**response, "id": "resp_ours"}


def wire(ending: str = "completed") -> bytes:
    return b"".join(upstream.wire(upstream.events_of(ASKED, OUTPUT, ending, 4)))


def through(relay: NativeRelay, blocks: list[bytes]) -> bytes:
    return b"".join(relay.feed(block) for block in blocks)


def data_of(events: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in events.split(b"\n") if line.startswith(b"data: ")]


def expected(ending: str = "completed") -> list[dict[str, Any]]:
    found = data_of(wire(ending))
    for event in found:
        if "response" in event:
            event["response"] = signed(event["response"])
    return found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(wire())), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_bytes_may_be_cut_anywhere(places: list[int], line_end: bytes) -> None:
    raw = wire().replace(b"\n", line_end)
    cuts = [0, *sorted(min(place, len(raw)) for place in places), len(raw)]
    relay = NativeRelay(None, signed)
    out = through(relay, [raw[start:end] for start, end in itertools.pairwise(cuts)])
    # After a bare CR at the very end a line feed might have followed.
    out += relay.feed(b"\n") if line_end == b"\r" else b""
    relay.close()
    assert relay.last is not None
    assert [*data_of(out), relay.last] == expected()
    assert relay.usage == {
        "prompt_tokens": 40, "completion_tokens": 20, "prompt_tokens_details": upstream.USAGE["input_tokens_details"],
        "completion_tokens_details": upstream.USAGE["output_tokens_details"],
    }  # fmt: skip
    assert relay.finish_reasons == ["tool_calls"]


def test_events_without_the_response_object_pass_byte_for_byte() -> None:
    relay = NativeRelay(None, signed)
    odd = b': hello\n\nevent: response.odd\ndata: {"type": "response.odd",  "n": 1.50, "s": "\\u00e9"}\n\n'
    assert relay.feed(odd + b"data: [DONE]\n\n") == odd
    assert relay.feed(wire()).startswith(b"event: response.created")


@pytest.mark.parametrize("ending", ["failed", "error"])
def test_what_came_before_a_failure_in_the_same_block_is_sent(ending: str) -> None:
    relay = NativeRelay(None, signed)
    out = relay.feed(wire(ending) + wire())
    assert relay.done
    assert relay.feed(wire()) == b""
    assert data_of(out) == expected(ending)[:-1]
    assert relay.next_number == len(expected(ending)) - 1
    with pytest.raises(UpstreamStreamError, match="the engine broke"):
        relay.close()
    assert relay.last is None


@pytest.mark.parametrize(
    "event",
    [b'data: {"error": {"message": "the engine broke"}}', b'event: error\ndata: {"type":"error","message":"the engine broke"}'],
)  # fmt: skip
def test_errors_in_the_forms_that_engines_use(event: bytes) -> None:
    relay = NativeRelay(None, signed)
    assert relay.feed(event + b"\n\n") == b""
    with pytest.raises(UpstreamStreamError, match="the engine broke"):
        relay.close()


@pytest.mark.parametrize(
    "raw", [b"data: nonsense\n\n", b"data: [1]\n\n", b'data: {"type": "response.completed"\n\n']
)
def test_nonsense_never_passes_for_an_end(raw: bytes) -> None:
    relay = NativeRelay(None, signed)
    relay.feed(raw)
    with pytest.raises(UpstreamStreamError):
        relay.close()


def test_an_event_may_be_large_but_not_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = NativeRelay(None, signed)
    large = b'data: {"type": "response.image", "b64": "' + b"A" * (3 << 20) + b'"}\n\n'
    blocks = [large[at : at + 65_536] for at in range(0, len(large), 65_536)]
    assert through(relay, blocks) == large
    monkeypatch.setattr(native_stream, "MAX_EVENT_BYTES", 1_000)
    relay = NativeRelay(None, signed)
    with pytest.raises(UpstreamStreamError, match="larger"):
        through(relay, blocks)
