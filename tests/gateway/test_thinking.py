"""Thinking through a whole tree: signed blocks survive on their way down and up, and policies see them."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER, USAGE, delta, finish
from tests.routing.anthropic_server import THOUGHTS

pytestmark = pytest.mark.integration
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO = [{"role": "user", "content": "Who is Ann?"}]


@pytest.fixture(autouse=True)
def fresh(door: Door) -> None:
    door.recorder.seen.clear()
    door.recorder.answer = lambda _: ANSWER


def last_sent(door: Door) -> dict[str, Any]:
    return door.anthropic.seen[-1].body


def chat_stream(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_an_openai_client_takes_signed_thoughts_from_anthropics_model_and_gives_them_back(door: Door) -> None:
    whole = door.post(CHAT, {"model": "claude/thinks", "messages": HELLO}).json()["choices"][0]["message"]
    assert whole["thinking_blocks"] == THOUGHTS
    assert whole["reasoning_content"] == THOUGHTS[0]["thinking"]
    stream = door.post(CHAT, {"model": "claude/thinks", "messages": HELLO, "stream": True})
    pieces = [
        piece
        for chunk in chat_stream(stream.text)
        for choice in chunk["choices"]
        for piece in choice["delta"].get("thinking_blocks") or ()
    ]
    assert "".join(piece.get("thinking") or "" for piece in pieces) == THOUGHTS[0]["thinking"]
    assert [piece["signature"] for piece in pieces if piece.get("signature")] == [THOUGHTS[0]["signature"]]
    assert [piece["data"] for piece in pieces if piece.get("data")] == [THOUGHTS[1]["data"]]
    unsigned = {"type": "thinking", "thinking": "I have lost my signature.", "signature": ""}
    said = {"role": "assistant", "content": "hello", "thinking_blocks": [*whole["thinking_blocks"], unsigned]}
    again = door.post(CHAT, {"model": "claude/thinks", "messages": [*HELLO, said, *HELLO]})
    assert again.status_code == 200, again.text
    assert last_sent(door)["messages"][1]["content"][:2] == THOUGHTS
    assert "lost my signature" not in json.dumps(last_sent(door))


def test_anthropics_client_has_the_same_thoughts_on_anthropics_model(door: Door) -> None:
    with anthropic.Anthropic(api_key=door.live.key, base_url=door.live.base, max_retries=0) as client:
        asked: dict[str, Any] = {
            "model": "claude/thinks", "max_tokens": 3_000, "messages": HELLO,
            "thinking": {"type": "enabled", "budget_tokens": 1_024},
        }  # fmt: skip
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
        for message in (whole, streamed):
            found = [block.model_dump(exclude_none=True) for block in message.content[:2]]
            assert found == THOUGHTS
        asked["messages"] = [*HELLO, {"role": "assistant", "content": whole.content}, *HELLO]
        client.messages.create(**asked)
    assert last_sent(door)["messages"][1]["content"][:2] == THOUGHTS


@pytest.mark.parametrize("stream", [False, True])
def test_an_openai_models_reasoning_is_a_thought_and_never_a_signed_one(door: Door, stream: bool) -> None:
    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm, yes."}
    door.recorder.answer = lambda _: (
        [delta(reasoning_content="Hm, "), delta(reasoning_content="yes."), delta(content="Yes."), finish("stop"), USAGE, b"[DONE]"]
        if stream
        else {**ANSWER, "choices": [{"index": 0, "message": said, "finish_reason": "stop"}]}
    )  # fmt: skip
    turns = [*HELLO, {"role": "assistant", "content": [*THOUGHTS, {"type": "text", "text": "x"}]}, *HELLO]
    answer = door.post(MESSAGES, {"model": "rec/echo", "max_tokens": 50, "messages": turns, "stream": stream})
    assert answer.status_code == 200, answer.text
    assert "Hm, " in answer.text
    assert '"signature":""' in answer.text
    # Signed thoughts of another model mean nothing to it.
    assert door.recorder.last["messages"][1] == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_policies_redact_thoughts_both_ways(door: Door, path: str, stream: bool) -> None:
    said: dict[str, Any] = {"role": "assistant", "content": "hello", "thinking_blocks": THOUGHTS}
    if path == MESSAGES:
        said = {"role": "assistant", "content": [*THOUGHTS, {"type": "text", "text": "hello"}]}
    body = {"model": "claude/thinks", "max_tokens": 500, "messages": [*HELLO, said, *HELLO], "stream": stream}
    answer = door.post(path, body, door.guarded)
    assert answer.status_code == 200, answer.text
    sent = json.dumps(last_sent(door))
    assert "ann@example.com" not in sent
    assert THOUGHTS[0]["signature"] not in sent  # the thought is not the one that was signed
    assert THOUGHTS[1]["data"] in sent
    assert "example" not in answer.text
    assert "[EMAIL]" in answer.text
    assert THOUGHTS[0]["signature"] not in answer.text
    assert THOUGHTS[1]["data"] in answer.text
