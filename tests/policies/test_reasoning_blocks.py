"""Policies over reasoning that comes in signed blocks: ``thinking_blocks``, ``reasoning_details``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from policies.engine import CallFacts, PolicyEngine, PolicySet, ResponseGuard

FACTS = CallFacts(tenant="t")
Block = dict[str, Any]


def chosen(stage: str, **fields: object) -> PolicySet:
    made = {"effect": "redact", "detectors": [{"id": "email"}], "stages": [stage], **fields}
    resource = Policy.model_validate({"kind": "Policy", "metadata": {"name": "p"}, **made})
    return PolicyEngine.compile(ConfigDocument.of([resource])).select("t", "", "k", "m")


def guard(stream: bool) -> ResponseGuard:
    found = chosen("response").response_guard(FACTS, "chat", stream)
    assert found is not None
    return found


def thinking(text: str, signature: str = "c2ln") -> Block:
    return {"type": "thinking", "thinking": text, "signature": signature}


def detail(text: str, index: int) -> Block:
    return {"type": "reasoning.text", "text": text, "signature": "c2ln", "index": index, "format": "f"}


CIPHER = {"type": "redacted_thinking", "data": "ann@example.com"}
"""In cipher, so it only looks like an address."""


def test_earlier_thoughts_are_redacted_and_lose_their_signature() -> None:
    said = {
        "role": "assistant", "content": "x",
        "thinking_blocks": [thinking("It is ann@example.com."), thinking("Well."), CIPHER],
        "reasoning_details": [detail("ann@example.com", 0), {"type": "reasoning.summary", "summary": "ann@example.com"}],
    }  # fmt: skip
    body = {"messages": [{"role": "user", "content": "hi"}, said]}
    before = json.dumps(body)
    decision = chosen("prompt").prompt(FACTS, body, "chat")
    assert decision is not None
    assert decision.body is not None
    assert json.dumps(body) == before
    redacted = decision.body["messages"][1]
    assert redacted["thinking_blocks"] == [thinking("It is [EMAIL].", ""), thinking("Well."), CIPHER]
    assert redacted["reasoning_details"] == [
        {**detail("[EMAIL]", 0), "signature": ""},
        {"type": "reasoning.summary", "summary": "[EMAIL]"},
    ]
    assert decision.detections == {"pii.email": 3}


def test_a_word_in_a_thought_is_denied() -> None:
    policies = chosen(
        "prompt",
        effect="deny",
        when='data.counts["word"] > 0',
        detectors=[{"id": "words", "words": ["xyzzy"]}],
    )
    body = {"messages": [{"role": "assistant", "content": "x", "thinking_blocks": [thinking("say xyzzy")]}]}
    decision = policies.prompt(FACTS, body, "chat")
    assert decision is not None
    assert decision.effect == "deny"


def pieces_of(blocks: list[Block], size: int, field: str) -> list[Block]:
    """Cut blocks as their makers stream them: texts in pieces, the signature in a piece of its own."""
    leaf = "thinking" if field == "thinking_blocks" else "text"
    pieces = []
    for block in blocks:
        text = block.get(leaf)
        if text is None:
            pieces.append(block)
            continue
        bare = {name: value for name, value in block.items() if name != "signature"}
        pieces += [{**bare, leaf: text[at : at + size]} for at in range(0, len(text), size)]
        if block.get("signature"):
            pieces.append({**block, leaf: ""})
    return pieces


def joined(chunks: list[Block], field: str) -> list[Block]:
    """Put the pieces together as clients do."""
    leaf = "thinking" if field == "thinking_blocks" else "text"
    blocks: list[Block] = []
    over = True
    for chunk in chunks:
        for choice in chunk["choices"]:
            for piece in choice["delta"].get(field, ()):
                if leaf not in piece:
                    blocks.append(piece)
                    over = True
                    continue
                if over:
                    blocks.append({**piece, leaf: ""})
                blocks[-1][leaf] += piece[leaf]
                over = "signature" in piece
                if over:
                    blocks[-1]["signature"] = piece["signature"]
    return blocks


def streamed(pieces: list[Block], field: str, *, finish: str | None = "stop") -> list[Block]:
    watching = guard(stream=True)
    out: list[Block] = []
    for piece in pieces:
        out += watching.feed(
            {"id": "c", "choices": [{"index": 0, "delta": {field: [piece]}, "finish_reason": None}]}
        )
    out += watching.feed({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return out + watching.finish()


@pytest.mark.parametrize("field", ["thinking_blocks", "reasoning_details"])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_what_streams_is_what_stands_in_the_whole(field: str, size: int) -> None:
    texts = ["I ask ann@example.com", "Or bob@example.org?", "Nobody."]
    blocks = (
        [thinking(texts[0]), CIPHER, thinking(texts[1]), thinking(texts[2])]
        if field == "thinking_blocks"
        else [detail(text, index) for index, text in enumerate(texts)]
    )
    body = {"choices": [{"index": 0, "message": {"content": "x", field: blocks}}]}
    whole = guard(stream=False).whole(body)["choices"][0]["message"][field]
    assert [block.get("signature") for block in whole if "data" not in block] == ["", "", "c2ln"]
    assert joined(streamed(pieces_of(blocks, size, field), field), field) == whole


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", " ", "ann@example.com", "@", "é", "."]), max_size=5), max_size=4),
    st.integers(1, 9),
)
def test_any_thoughts_in_any_pieces(thoughts: list[list[str]], size: int) -> None:
    blocks = [thinking("".join(words)) for words in thoughts]
    body = {"choices": [{"index": 0, "message": {"content": "x", "thinking_blocks": blocks}}]}
    whole = guard(stream=False).whole(body)["choices"][0]["message"]["thinking_blocks"]
    assert (
        joined(streamed(pieces_of(blocks, size, "thinking_blocks"), "thinking_blocks"), "thinking_blocks")
        == whole
    )


@pytest.mark.parametrize("finish", ["stop", None])
def test_a_thought_that_is_never_signed_is_released_at_the_end(finish: str | None) -> None:
    pieces = [{"type": "thinking", "thinking": "ann@exam"}, {"type": "thinking", "thinking": "ple.com"}]
    out = streamed(pieces, "thinking_blocks", finish=finish)
    assert joined(out, "thinking_blocks") == [{"type": "thinking", "thinking": "[EMAIL]"}]
    assert finish is None or out[-1]["choices"][0]["finish_reason"] == finish
