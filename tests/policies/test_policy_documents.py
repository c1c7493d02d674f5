"""What can be wrong with a policy is said with its key; scopes; tests that travel inside."""

from __future__ import annotations

from typing import Any

import pytest

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from airi.config.positions import Where
from policies.documents import compile_policy, matches, policy_problems
from policies.engine import PolicyEngine
from policies.errors import PolicyInputError
from policies.testing import run_tests


def policy(name: str = "p", **fields: Any) -> Policy:
    return Policy.model_validate({"kind": "Policy", "metadata": {"name": name}, "effect": "deny", **fields})


@pytest.mark.parametrize(
    ("fields", "key", "words"),
    [
        ({"when": "model.regio == 'eu'"}, "when", "did you mean 'model.region'"),
        ({"when": "size(tenant)"}, "when", "bool is needed"),
        ({"when": "'pii.email' in data.classes"}, "when", "lists no detectors"),
        ({"effect": "redact"}, "detectors", "needs detectors"),
        ({"detectors": [{"id": "words"}]}, "detectors.0.words", "between 1 and"),
        ({"detectors": [{"id": "email", "words": ["x"]}]}, "detectors.0.words", "only the detector 'words'"),
        (
            {"effect": "route", "route_to": "m", "stages": ["response"]},
            "stages",
            "only possible in the stage 'prompt'",
        ),
        (
            {
                "effect": "redact",
                "detectors": [{"id": "pii"}],
                "stages": ["response"],
                "when": "text.chars > 3",
            },
            "when",
            "match by match",
        ),
        (
            {"tests": [{"name": "t", "input": {"txt": ""}, "expect": {"efect": "deny"}}]},
            "tests.0.input.txt",
            "known are",
        ),
    ],
)
def test_problems_name_the_key(fields: dict[str, Any], key: str, words: str) -> None:
    problems = policy_problems(policy(**fields))
    assert any(problem.startswith(f"Policy/p: {key}: ") and words in problem for problem in problems), (
        problems
    )
    with pytest.raises(PolicyInputError, match="Policy/p"):
        compile_policy(policy(**fields))


def test_problems_name_file_and_line_when_they_are_known() -> None:
    (problem,) = policy_problems(policy(when="tenantt == 'a'"), Where("Policy", "p", "airi.yaml"))
    assert problem == "airi.yaml: Policy/p: when: 1:1: unknown name 'tenantt'; did you mean 'tenant'?"


def test_a_good_policy_has_no_problems() -> None:
    good = policy(
        when="data.counts['pii.email'] > 2 && model.region != 'eu'",
        detectors=[{"id": "pii", "min_score": 0.9}],
    )
    assert policy_problems(good) == []
    assert compile_policy(good).thresholds["pii.card"] == 0.9


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("gpt-*", "gpt-4o", True), ("gpt-*", "o1", False), ("*", "", True), ("a*b*c", "abc", True), ("a*b*c", "acb", False),
        ("*mini", "gpt-mini", True), ("ab*ba", "aba", False), ("a", "a", True), ("a.c", "abc", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_scopes_are_selected_by_all_four_names() -> None:
    engine = PolicyEngine.compile(
        ConfigDocument.of(
            [
                policy("all"),
                policy("acme", scope={"tenants": ["acme"]}),
                policy("ac", scope={"tenants": ["ac*"], "models": ["gpt-*"]}),
                policy("team", scope={"teams": ["research"], "keys": ["k1"]}),
                policy("off", mode="off"),
            ]
        )
    )

    def names(*call: str) -> set[str]:
        return {chosen.name for chosen in engine.select(*call).policies}

    assert names("acme", "", "k", "gpt-4") == {"all", "acme", "ac"}
    assert names("acme", "", "k", "o1") == {"all", "acme"}
    assert names("x", "research", "k1", "o1") == {"all", "team"}
    assert engine.select("x", "", "a", "b") is engine.select("x", "", "a", "b")
    assert engine.select("x", "", "a", "b") is engine.select("y", "", "c", "d")


def test_a_thousand_policies_are_selected_by_index() -> None:
    engine = PolicyEngine.compile(
        ConfigDocument.of(
            [policy(f"p{number}", scope={"tenants": [f"t{number % 100}"]}) for number in range(1_000)]
        )
    )
    assert len(engine.select("t7", "", "k", "m").policies) == 10
    for number in range(5_000):
        engine.select(f"t{number % 100}", "", f"k{number}", "m")
    assert len(engine._sets) <= 4_096  # bounded


def test_tests_inside_a_policy() -> None:
    resource = policy(
        mode="shadow",
        scope={"tenants": ["acme-*"], "models": ["gpt-*"]},
        when="data.classes.exists(c, c.startsWith('pii.')) && model.region != 'eu'",
        detectors=[{"id": "pii"}],
        reason="PII_EGRESS",
        tests=[
            {
                "name": "e-mail leaves",
                "input": {"text": "a@b.io"},
                "expect": {"effect": "deny", "reason": "PII_EGRESS"},
            },
            {
                "name": "eu is fine",
                "input": {"text": "a@b.io", "model": {"region": "eu"}},
                "expect": {"effect": "allow"},
            },
            {"name": "others", "input": {"text": "a@b.io", "tenant": "x"}, "expect": {"effect": "allow"}},
            {"name": "wrong on purpose", "input": {"text": "hello"}, "expect": {"effect": "deny"}},
        ],
    )
    results = run_tests([resource])
    assert [result.passed for result in results] == [True, True, True, False]
    assert results[3].differences == ["effect: expected 'deny', got 'allow'"]


def test_tests_of_redactions_and_answers() -> None:
    resource = policy(
        effect="redact",
        stages=["prompt", "response"],
        detectors=[{"id": "email"}],
        tests=[
            {
                "name": "prompt",
                "input": {"text": "to a@b.io"},
                "expect": {"effect": "redact", "text": "to [EMAIL]"},
            },
            {
                "name": "answer",
                "input": {"stage": "response", "text": "to a@b.io"},
                "expect": {"text": "to [EMAIL]", "detections": {"pii.email": 1}},
            },
            {
                "name": "body",
                "input": {"body": {"input": ["a@b.io", "x"]}, "call": {"route": "embeddings"}},
                "expect": {"body": {"input": ["[EMAIL]", "x"]}},
            },
        ],
    )
    assert [result.differences for result in run_tests([resource])] == [[], [], []]


def test_an_input_of_the_wrong_form_is_refused() -> None:
    with pytest.raises(PolicyInputError, match="must be a mapping"):
        run_tests([policy(tests=[{"name": "t", "input": {"model": "gpt"}, "expect": {}}])])
