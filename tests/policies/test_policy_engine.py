"""Decisions: conflicts, shadows, errors, rewriting, and the response stage."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from policies import content
from policies.detectors import Scanner
from policies.engine import CallFacts, PolicyDecision, PolicyEngine, PolicySet, ResponseGuard
from policies.errors import PolicyDeniedError
from policies.explain import explain

FACTS = CallFacts(tenant="acme", model="gpt-4", region="us", role="developer", tags=["a"], tools=["search"])


def policy(name: str, effect: str = "deny", **fields: Any) -> Policy:
    return Policy.model_validate({"kind": "Policy", "metadata": {"name": name}, "effect": effect, **fields})


def engine(*policies: Policy) -> PolicyEngine:
    return PolicyEngine.compile(ConfigDocument.of(policies))


def chosen(*policies: Policy) -> PolicySet:
    return engine(*policies).select("acme", "", "k", "gpt-4")


def ask(*policies: Policy, text: str = "hello", facts: CallFacts = FACTS) -> PolicyDecision:
    decision = chosen(*policies).prompt(facts, {"messages": [{"role": "user", "content": text}]}, "chat")
    assert decision is not None
    return decision


PII = [{"id": "pii"}]


def test_no_policy_no_decision() -> None:
    assert chosen().prompt(FACTS, {"messages": []}, "chat") is None
    assert chosen(policy("r", stages=["response"])).prompt(FACTS, {"messages": []}, "chat") is None
    assert chosen(policy("p")).response_guard(FACTS, "chat", True) is None


def test_the_strongest_effect_wins() -> None:
    allow, redact = policy("a", "allow"), policy("b", "redact", detectors=PII)
    route, deny = policy("c", "route", route_to="cheap"), policy("d", "deny", reason="NO")
    assert ask(allow).effect == "allow"
    assert ask(allow).policy == "a"
    assert ask(allow, redact, text="a@b.io").effect == "redact"
    both = ask(allow, redact, route, text="a@b.io")
    assert (both.effect, both.route_to) == ("route", "cheap")
    assert both.body == {"messages": [{"role": "user", "content": "[EMAIL]"}]}
    last = ask(allow, redact, route, deny, text="a@b.io")
    assert (last.effect, last.policy, last.reason, last.route_to, last.body) == (
        "deny",
        "d",
        "NO",
        None,
        None,
    )


def test_a_lower_tier_never_loosens_a_higher_one() -> None:
    upper = policy("z-platform", "deny", tier="platform")
    assert ask(upper, policy("a-key", "allow", tier="key")).policy == "z-platform"
    first = ask(
        policy("z", "route", route_to="upper", tier="org"), policy("a", "route", route_to="lower", tier="key")
    )
    assert first.route_to == "upper"


def test_a_redaction_with_nothing_to_redact_did_nothing() -> None:
    decision = ask(policy("r", "redact", detectors=PII))
    assert (decision.effect, decision.policy, decision.body) == ("allow", "", None)


def test_shadows_are_reported_and_never_applied() -> None:
    decision = ask(
        policy("s", "deny", mode="shadow", reason="LATER"),
        policy("r", "redact", mode="shadow", detectors=PII),
        text="a@b.io",
    )
    assert (decision.effect, decision.body) == ("allow", None)
    assert decision.shadows == [
        {"policy": "r", "effect": "redact", "reason": "POLICY"},
        {"policy": "s", "effect": "deny", "reason": "LATER"},
    ]


def test_an_error_in_an_enforced_condition_denies() -> None:
    broken = {"when": "data.counts['absent'] > 1", "detectors": PII}
    decision = ask(policy("b", "allow", **broken), policy("c", "route", route_to="x", when="call.n > 5"))
    assert (decision.effect, decision.policy, decision.reason) == ("deny", "b", "POLICY_ERROR")
    assert ask(policy("b", "deny", mode="shadow", **broken)).effect == "allow"


def test_a_broken_detector_denies_unless_its_policy_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(Scanner, "maybe", fail)
    when = "data.classes.exists(c, true)"
    assert ask(policy("strict", when=when, detectors=PII)).reason == "POLICY_ERROR"
    assert ask(policy("easy", when=when, detectors=[{"id": "pii", "on_error": "allow"}])).effect == "allow"


@pytest.mark.parametrize(
    "when",
    [
        "tenant == 'acme' && role == 'developer' && user == ''",
        "model.alias.startsWith('gpt') && model.region == 'us' && !model.simulated",
        "call.route == 'chat' && call.n == 1 && 'a' in call.tags && 'search' in call.tools && !call.stream",
        "text.chars == 6 && text.tokens == 2 && stage == 'prompt'",
        "data.classes == ['pii.email'] && data.counts['pii.email'] == 1 && data.max_score > 0.9",
        "time.hour >= 0 && time.weekday in [1, 2, 3, 4, 5, 6, 7]",
    ],
)
def test_variables(when: str) -> None:
    assert ask(policy("v", when=when, detectors=PII), text="a@b.io").effect == "deny"


def test_each_policy_sees_its_own_detectors() -> None:
    card_only = policy("card", when="size(data.classes) > 0", detectors=[{"id": "card"}])
    words = policy("words", when="data.counts['word'] == 1", detectors=[{"id": "words", "words": ["falcon"]}])
    other = policy("other", when="size(data.classes) > 0", detectors=[{"id": "words", "words": ["eagle"]}])
    assert ask(card_only, text="a@b.io").effect == "allow"
    assert ask(card_only, other, words, text="a@b.io falcon").policy == "words"


def test_many_conditions_joined_say_the_same_as_each_alone() -> None:
    policies = [policy(f"p{number:02}", mode="shadow", when=f"call.n > {number}") for number in range(40)]
    facts = CallFacts(tenant="acme", n=17)
    for _ in range(2):  # the second time from memory
        decision = chosen(*policies).prompt(facts, {"messages": []}, "chat")
        assert decision is not None
        assert [shadow["policy"] for shadow in decision.shadows] == [f"p{number:02}" for number in range(17)]


def test_every_place_of_a_request_is_looked_at_and_rewritten_in_a_copy() -> None:
    body: dict[str, Any] = {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be a@b.io"},
            {"role": "user", "content": [{"type": "text", "text": "c@d.io"}, {"type": "image_url", "image_url": {"url": "data:x"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"to": "e\\u0040f.io"}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "g@h.io"},
        ],
        "prompt": ["i@j.io", [1, 2]],
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "k@l.io"}]}],
        "instructions": "m@n.io",
        "tools": [{"type": "function", "function": {"name": "f", "description": "o@p.io"}}],
    }  # fmt: skip
    before = copy.deepcopy(body)
    decision = chosen(policy("r", "redact", detectors=PII)).prompt(FACTS, body, "chat")
    assert decision is not None
    assert decision.body is not None
    assert body == before
    assert decision.detections == {"pii.email": 7}
    assert [slot.text for slot in content.request_texts(decision.body)] == [
        "be [EMAIL]", "[EMAIL]", '{"to": "[EMAIL]"}', "[EMAIL]", "[EMAIL]", "[EMAIL]", "[EMAIL]",
    ]  # fmt: skip
    assert decision.body["tools"] is body["tools"]
    assert decision.body["messages"][1]["content"][1] is body["messages"][1]["content"][1]


def guard(*policies: Policy, stream: bool = True) -> ResponseGuard:
    found = chosen(*policies).response_guard(FACTS, "chat", stream)
    assert found is not None
    return found


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


RESPONSE = {"stages": ["response"]}


def test_a_denied_answer_is_an_error() -> None:
    watching = guard(
        policy("d", when="size(data.classes) > 0", detectors=PII, message="no addresses", **RESPONSE),
        stream=False,
    )
    with pytest.raises(PolicyDeniedError, match="no addresses") as caught:
        watching.whole({"choices": [{"message": {"content": "a@b.io"}}]})
    assert (caught.value.status, caught.value.decision.policy) == (403, "d")
    assert watching.decision.detections == {"pii.email": 1}


def test_a_denied_stream_stops_before_anything_of_the_match_was_released() -> None:
    watching = guard(
        policy("d", when="data.counts['pii.email'] > 1", detectors=[{"id": "email"}], **RESPONSE)
    )
    released: list[str] = []

    def play() -> None:
        for text in ("first a@", "b.io and ", "second c", "@d.i", "o then", " more"):
            released.extend(out["choices"][0]["delta"]["content"] for out in watching.feed(chunk(text)))

    with pytest.raises(PolicyDeniedError):
        play()
    assert "".join(released) == "first a@b.io and second "


def test_a_condition_without_data_denies_before_the_first_chunk() -> None:
    with pytest.raises(PolicyDeniedError):
        guard(policy("d", when="model.region == 'us'", **RESPONSE)).feed(chunk("x"))


def test_a_limit_on_length_stops_a_stream() -> None:
    watching = guard(policy("long", when="text.chars > 10", **RESPONSE))
    assert watching.feed(chunk("12345")) == [chunk("12345")]
    with pytest.raises(PolicyDeniedError):
        watching.feed(chunk("6789012"))
    whole = guard(policy("long", when="text.chars > 10", **RESPONSE), stream=False)
    with pytest.raises(PolicyDeniedError):
        whole.whole({"choices": [{"message": {"content": "12345678901"}}]})


def test_shadows_of_an_answer_are_reported_once() -> None:
    watching = guard(
        policy("r", "redact", mode="shadow", detectors=PII, **RESPONSE),
        policy("d", when="size(data.classes) > 0", mode="shadow", detectors=PII, **RESPONSE),
    )
    out = [
        piece for text in ("a@b.io ", "c@d.io ") for piece in watching.feed(chunk(text))
    ] + watching.finish()
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in out) == "a@b.io c@d.io "
    assert sorted(shadow["policy"] for shadow in watching.decision.shadows) == ["d", "r"]
    assert watching.decision.effect == "allow"


def test_explain_says_of_every_policy_why() -> None:
    made = engine(
        policy("deny-pii", when="size(data.classes) > 0 && model.region == 'us'", detectors=PII),
        policy("elsewhere", scope={"tenants": ["other"]}),
        policy("later", **RESPONSE),
        policy("no", when="call.n > 1"),
        policy("quiet", mode="shadow"),
        policy("redact", "redact", detectors=PII),
        policy("broken", when="data.counts['x'] > 1", detectors=PII, mode="shadow"),
    )
    body = {"messages": [{"role": "user", "content": "mail a@b.io"}]}
    result = explain(made, FACTS, body)
    why = {said["policy"]: said["why"] for said in result["policies"]}
    assert result["decision"]["effect"] == "deny"
    assert why["deny-pii"] == "the condition holds"
    assert why["elsewhere"] == "out of scope: tenant 'acme' is not among other"
    assert why["later"] == "not for the stage 'prompt', only for response"
    assert why["no"] == "the condition is false"
    assert "shadow" in why["quiet"]
    assert why["redact"] == "the condition holds; overruled by 'deny-pii' (deny)"
    assert why["broken"].startswith("the condition failed (")
    assert result["detections"] == [
        {
            "class": "pii.email",
            "score": 0.95,
            "where": "messages.0.content",
            "start": 5,
            "end": 11,
            "sample": "a•••••",
        }
    ]
    assert "a@b.io" not in str(result)


def test_explain_an_answer() -> None:
    made = engine(policy("r", "redact", detectors=PII, **RESPONSE))
    answer = {"choices": [{"message": {"content": "a@b.io"}}]}
    result = explain(made, FACTS, answer, stage="response")
    assert result["decision"]["rewritten"] == {"choices": [{"message": {"content": "[EMAIL]"}}]}
    assert result["policies"][0]["applied"] is True
