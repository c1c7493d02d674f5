from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamStreamError
from gateway.streams import StreamRelay


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], usage=None)


FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def through(relay: StreamRelay, blocks: list[bytes]) -> bytes:
    return b"".join(relay.feed(block) for block in blocks)


@given(st.data())
def test_any_splitting_gives_the_same_bytes(data: st.DataObject) -> None:
    stream = b": hello\n\n" + delta("a [DONE] “usage”") + delta('"usage":{"x":1}') + FINISH + USAGE + DONE
    wire = stream.replace(b"\n", b"\r\n") if data.draw(st.booleans()) else stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    blocks = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    relay = StreamRelay(hide_usage=True)
    assert through(relay, blocks) == stream.replace(USAGE, b"")
    relay.close()
    assert relay.usage == {"prompt_tokens": 3, "completion_tokens": 2}
    assert relay.finish_reasons == ["stop"]


def test_the_usage_chunk_is_kept_for_who_asked() -> None:
    relay = StreamRelay(hide_usage=False)
    assert USAGE in through(relay, [delta("x") + USAGE + DONE])


def test_a_stream_without_its_end_is_an_error() -> None:
    relay = StreamRelay(hide_usage=False)
    through(relay, [delta("x")])
    with pytest.raises(UpstreamStreamError, match="before the terminal event"):
        relay.close()


def test_an_error_event_is_an_error() -> None:
    relay = StreamRelay(hide_usage=False)
    with pytest.raises(UpstreamStreamError, match="out of memory"):
        relay.feed(event(error={"message": "out of memory"}))


def test_nothing_passes_after_the_end() -> None:
    relay = StreamRelay(hide_usage=False)
    assert through(relay, [DONE + delta("late"), delta("later")]) == DONE


def test_an_endless_event_is_refused() -> None:
    relay = StreamRelay(hide_usage=False)
    for _ in range(15):
        assert relay.feed(b"data: " + b"x" * 65_536) == b""
    with pytest.raises(UpstreamStreamError, match="larger than 1 MiB"):
        relay.feed(b"x" * 131_072)


class Shout:
    """A guard that holds one chunk back."""

    def __init__(self) -> None:
        self.held: list[dict[str, Any]] = []

    def feed(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        out, self.held = self.held, [chunk]
        return out

    def finish(self) -> list[dict[str, Any]]:
        out, self.held = self.held, []
        return out


def test_a_guard_sees_every_chunk_and_is_flushed_before_the_end() -> None:
    relay = StreamRelay(hide_usage=True, guard=Shout())
    out = through(relay, [delta("a")[:9], delta("a")[9:] + delta("b"), FINISH + USAGE + DONE])
    assert [json.loads(e[6:])["choices"][0]["delta"].get("content") for e in out.split(b"\n\n")[:-2]] == [
        "a",
        "b",
        None,
    ]
    assert out.endswith(DONE)
