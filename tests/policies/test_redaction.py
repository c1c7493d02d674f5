"""Redaction of streams equals redaction of the whole, whatever the chunks."""

from __future__ import annotations

import json
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from policies.detectors import Candidate, Scanner, Words
from policies.detectors.spans import LOOK_AHEAD, PII, SECRETS, WORD
from policies.engine import CallFacts, PolicyEngine, ResponseGuard
from policies.redaction import JsonStream, TextStream, always, apply, redact, redact_json
from tests.policies import documents_random as documents

SCANNER = Scanner({**dict.fromkeys((*PII, *SECRETS), 0.5), WORD: 0.5}, Words(documents.WORDS))


def in_pieces(pieces: list[str]) -> str:
    stream, held, out = TextStream(SCANNER, always), "", []
    for piece in pieces:
        text, held = apply(stream.feed(piece), held + piece)
        out.append(text)
        assert len(held) <= LOOK_AHEAD + len(piece)
    text, held = apply(stream.feed("", final=True), held)
    assert held == ""
    return "".join([*out, text])


def json_in_pieces(pieces: list[str]) -> str:
    stream = JsonStream(SCANNER, always)
    return "".join([stream.feed(piece) for piece in pieces] + [stream.feed("", final=True)])


PIECES = st.lists(st.sampled_from(documents.FRAGMENTS) | st.text(max_size=6), max_size=10)


@given(PIECES, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_text_in_any_pieces(parts: list[str], rng: random.Random) -> None:
    text = "".join(parts)
    assert in_pieces(documents.cut(rng, text)) == redact(text, SCANNER)


@given(
    st.dictionaries(st.text(max_size=8), PIECES.map("".join), max_size=3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_json_in_any_pieces(value: dict[str, str], ascii_only: bool, rng: random.Random) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    whole = redact_json(text, SCANNER)
    assert json_in_pieces(documents.cut(rng, text)) == whole
    for key, again in json.loads(whole).items():
        assert redact_json(json.dumps(again), SCANNER) == json.dumps(again) or key in value


@given(st.text(alphabet='{}[]",:\\u0041e-. \n', max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_broken_json_in_any_pieces(text: str, rng: random.Random) -> None:
    assert json_in_pieces(documents.cut(rng, text)) == redact_json(text, SCANNER)


def test_a_whole_answer_and_its_stream_agree() -> None:
    from bench.redaction import difference, policies

    chosen = policies()
    assert [told for seed in range(25) if (told := difference(chosen, seed))] == []


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["x@example.co", ".uk now"], "[EMAIL] now"),
        (["4111 1111 1111", " 1111", " x"], "[CARD] x"),
        (["sk-" + "a1" * 2_000, "b2" * 500, " end"], "[SECRET] end"),
        (
            ["-----BEGIN PRIVATE KEY-----\n" + "MIIE\n" * 500, "-----END PRIV", "ATE KEY-----", " after"],
            "[SECRET] after",
        ),
        (["it is 4", "2 or 7", " maybe"], "it is 42 or 7 maybe"),
    ],
)
def test_pieces(pieces: list[str], expected: str) -> None:
    assert in_pieces(pieces) == expected == redact("".join(pieces), SCANNER)


def test_what_is_decided_is_released_at_once() -> None:
    stream = TextStream(SCANNER, always)
    assert apply(stream.feed("Hello wonderful world"), "Hello wonderful world") == (
        "Hello wonderful ",
        "world",
    )
    assert stream.held == 5


def test_json_is_kept_byte_for_byte_where_nothing_is_found() -> None:
    text = '{ "a" : "caf\\u00e9 \\/ \\ud83d\\ude00", "n":[1, -2.50e+3,true ,null], "é": "\\n" }'
    assert redact_json(text, SCANNER) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"to":"a\\u0040b.io"}', '{"to":"[EMAIL]"}'),
        ('{"a@b.io": 1}', '{"[EMAIL]": 1}'),
        ('{"card": 4111111111111111, "x": 1}', '{"card": "[CARD]", "x": 1}'),
        ('{"password": "hunter2xx!"}', '{"password": "[SECRET]"}'),
        ('{"phone": ["467 3395"]}', '{"phone": ["[PHONE]"]}'),
        ("mail a@b.io", "mail [EMAIL]"),
        ('{"to": a@b.io}', '{"to": [EMAIL]}'),
        ('{"to": "a@b.io', '{"to": "[EMAIL]'),
    ],
)
def test_arguments(text: str, expected: str) -> None:
    assert redact_json(text, SCANNER) == expected


def guard(stream: bool = True, **policy: object) -> ResponseGuard:
    made = {"effect": "redact", "detectors": [{"id": "pii"}], "stages": ["response"], **policy}
    resource = Policy.model_validate({"kind": "Policy", "metadata": {"name": "p"}, **made})
    chosen = PolicyEngine.compile(ConfigDocument.of([resource])).select("t", "", "k", "m")
    found = chosen.response_guard(CallFacts(tenant="t"), "chat", stream)
    assert found is not None
    return found


def chunk(index: int = 0, finish: str | None = None, **delta: object) -> dict[str, object]:
    return {"id": "c", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def test_held_text_comes_before_the_finish_reason() -> None:
    watching = guard()
    assert watching.feed(chunk(role="assistant", content="")) == [chunk(role="assistant", content="")]
    assert watching.feed(chunk(content="mail a@b.i")) == [chunk(content="mail ")]
    assert watching.feed(chunk(content="o")) == []
    out = watching.feed(chunk(finish="stop"))
    assert [c["choices"][0]["delta"] for c in out] == [{"content": "[EMAIL]"}, {}]
    assert [c["choices"][0]["finish_reason"] for c in out] == [None, "stop"]
    assert watching.finish() == []
    assert watching.decision.detections == {"pii.email": 1}
    assert watching.decision.effect == "redact"


def test_text_with_the_finish_reason_is_in_the_same_chunk() -> None:
    watching = guard()
    assert watching.feed(chunk(content="to a@b.")) == [chunk(content="to ")]
    assert watching.feed(chunk(content="io", finish="stop")) == [chunk(content="[EMAIL]", finish="stop")]


def test_a_stream_without_an_end_is_flushed() -> None:
    watching = guard()
    watching.feed(chunk(1, content="mail a@b.io"))
    assert watching.finish() == [chunk(1, content="[EMAIL]")]


def test_unknown_fields_and_usage_pass_untouched() -> None:
    watching = guard()
    odd = {
        "id": "c",
        "x_unknown": {"a": 1},
        "choices": [{"index": 0, "delta": {"audio": {"id": "a"}}, "finish_reason": None}],
    }
    usage = {"id": "c", "choices": [], "usage": {"total_tokens": 1}}
    assert watching.feed(odd)[0] is odd
    assert watching.feed(usage)[0] is usage


def test_log_probabilities_do_not_repeat_the_text() -> None:
    watching = guard()
    spoken = chunk(content="mail a@b.io")
    spoken["choices"][0]["logprobs"] = {"content": [{"token": "a@b.io"}]}  # type: ignore[index]
    assert "a@b.io" not in msgspec.json.encode(watching.feed(spoken)).decode()
    whole = {
        "choices": [
            {"index": 0, "message": {"content": "a@b.io"}, "logprobs": {"content": [{"token": "a@b.io"}]}}
        ]
    }
    assert guard(stream=False).whole(whole)["choices"][0] == {
        "index": 0,
        "message": {"content": "[EMAIL]"},
        "logprobs": None,
    }
    assert whole["choices"][0]["message"] == {"content": "a@b.io"}


def test_halves_of_a_character_are_joined() -> None:
    watching = guard()
    out = (
        watching.feed(chunk(content="hi \ud83d"))
        + watching.feed(chunk(content="\ude00 \udc00 x"))
        + watching.finish()
    )
    assert "".join(c["choices"][0]["delta"]["content"] for c in out) == "hi 😀 \ufffd x"


def test_legacy_completions() -> None:
    watching = guard()
    out = watching.feed({"choices": [{"index": 0, "text": "to a@b.", "finish_reason": None}]})
    out += watching.feed({"choices": [{"index": 0, "text": "io", "finish_reason": None}]})
    out += watching.feed({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    assert "".join(c["choices"][0].get("text", "") for c in out) == "to [EMAIL]"


def test_a_redaction_is_decided_match_by_match() -> None:
    only_cards = guard(when="data.classes.exists(c, c == 'pii.card')")
    out = only_cards.feed(chunk(content="a@b.io 4111111111111111 ")) + only_cards.finish()
    assert "".join(c["choices"][0]["delta"]["content"] for c in out) == "a@b.io [CARD] "


def test_judges_see_each_match_once_and_in_order() -> None:
    seen: list[str] = []

    def judge(match: Candidate) -> bool:
        seen.append(match.name)
        return False

    stream = TextStream(SCANNER, judge)
    for char in "a@b.io then 4111111111111111 and falcon. ":
        stream.feed(char)
    stream.feed("", final=True)
    assert seen == ["pii.email", "pii.card", "word"]
