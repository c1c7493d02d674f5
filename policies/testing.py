"""The tests that travel inside a policy: each is an input and what the policy must say of it.

A test looks at its own policy alone, as if it were enforced, whatever its mode is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from airi.config.kinds import Policy, PolicyTest
from policies import content
from policies.content import Body
from policies.documents import compile_policy
from policies.engine import PolicyEngine, PolicySet
from policies.engine_types import CallFacts, PolicyDecision
from policies.errors import PolicyDeniedError, PolicyInputError

_CALL = ("stream", "n", "max_tokens", "tags", "tools")


class PolicyTestResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one test ended. ``differences`` says for each expected key what was found instead; empty when it passed."""

    policy: str
    test: str
    passed: bool
    differences: list[str]
    actual: dict[str, Any]


def run_tests(resources: Iterable[Any]) -> list[PolicyTestResult]:
    """Run the tests of all policies among ``resources``; raise :class:`PolicyInputError` for a policy that is invalid."""
    results: list[PolicyTestResult] = []
    for resource in resources:
        if isinstance(resource, Policy) and resource.tests:
            compiled = compile_policy(resource.model_copy(update={"mode": "enforce"}))
            engine = PolicyEngine([compiled])
            results += [_run(resource, test, engine) for test in resource.tests]
    return results


def facts_of(given: dict[str, Any], resource: Policy | None = None) -> CallFacts:
    """Return the facts that a test's input names; what it leaves out fits the policy's scope."""
    scope = resource.scope if resource is not None else None
    model, call = _mapping(given, "model"), _mapping(given, "call")
    said = {
        "tenant": given.get("tenant"), "team": given.get("team"), "key_id": given.get("key"), "user": given.get("user"),
        "role": given.get("role"), "model": model.get("alias"), "region": model.get("region"),
        "simulated": model.get("simulated"), **{name: call.get(name) for name in _CALL},
    }  # fmt: skip
    assumed = {
        "tenant": _example(scope.tenants if scope else [], "test"),
        "team": _example(scope.teams if scope else [], ""),
        "key_id": _example(scope.keys if scope else [], ""),
        "role": "developer",
        "model": _example(scope.models if scope else [], "test"),
    }
    try:
        return msgspec.convert(
            {**assumed, **{name: value for name, value in said.items() if value is not None}},
            CallFacts,
        )
    except msgspec.ValidationError as error:
        raise PolicyInputError(f"the input of a policy test: {error}") from error


def body_of(given: dict[str, Any], stage: str) -> Body:
    """Return the request or the answer that an input describes: ``body``/``response`` as they are, or made of ``text``."""
    whole = given.get("body" if stage == "prompt" else "response")
    if isinstance(whole, dict):
        return whole
    text = str(given.get("text", ""))
    if stage == "prompt":
        return {"model": "test", "messages": [{"role": "user", "content": text}]}
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


def _run(resource: Policy, test: PolicyTest, engine: PolicyEngine) -> PolicyTestResult:
    facts = facts_of(test.input, resource)
    stage = str(test.input.get("stage", resource.stages[0]))
    route = str(_mapping(test.input, "call").get("route", "chat"))
    chosen = engine.select(facts.tenant, facts.team, facts.key_id, facts.model)
    body = body_of(test.input, stage)
    actual = _ask(chosen, facts, body, stage, route)
    differences = [
        f"{key}: expected {wanted!r}, got {actual.get(key)!r}"
        for key, wanted in test.expect.items()
        if actual.get(key) != wanted
    ]
    return PolicyTestResult(
        policy=resource.metadata.name,
        test=test.name,
        passed=not differences,
        differences=differences,
        actual=actual,
    )


def _ask(chosen: PolicySet, facts: CallFacts, body: Body, stage: str, route: str) -> dict[str, Any]:
    if stage == "prompt":
        decision = chosen.prompt(facts, body, route) or PolicyDecision()
        result = decision.body or body
        texts = [slot.text for slot in content.request_texts(result)]
    else:
        guard = chosen.response_guard(facts, route, False)
        result = body
        if guard is not None:
            try:
                result = guard.whole(body)
            except PolicyDeniedError:
                result = {}
        decision = guard.decision if guard is not None else PolicyDecision()
        texts = [slot.text for _, slot in content.response_texts(result)]
    return {
        "effect": decision.effect,
        "reason": decision.reason,
        "route_to": decision.route_to,
        "detections": decision.detections,
        "text": "\n".join(texts),
        "body": result,
    }


def _mapping(given: dict[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise PolicyInputError(f"the input of a policy test: {key!r} must be a mapping, not {value!r}")
    return value


def _example(patterns: list[str], otherwise: str) -> str:
    return patterns[0].replace("*", "x") if patterns else otherwise
