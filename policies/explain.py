"""Why the policies decide as they do: every policy, applied or not and why, what was found, and the decision."""

from __future__ import annotations

from typing import Any

import msgspec

from policies import content
from policies.content import Body, Slot
from policies.detectors import Candidate, Scanner
from policies.documents import CompiledPolicy, matches
from policies.engine import PolicyEngine, PolicySet, describe, make_scanner
from policies.engine_conditions import Conditions
from policies.engine_types import CallFacts, PolicyDecision
from policies.errors import PolicyDeniedError
from policies.redaction import JsonStream
from policies.variables import Observed, Reader, Situation

_MAX_SHOWN = 200


def explain(
    engine: PolicyEngine, facts: CallFacts, body: Body, *, stage: str = "prompt", route: str = "chat"
) -> dict[str, Any]:
    """Return every policy with its verdict, the detections (class, place, masked sample) and the final decision.

    ``body`` is the request (stage ``prompt``) or the whole answer (stage ``response``).
    """
    chosen = engine.select(facts.tenant, facts.team, facts.key_id, facts.model)
    decision, result = _decide(chosen, facts, body, stage, route)
    slots = _slots(body, stage)
    scanner = make_scanner([policy for policy in chosen.policies if stage in policy.resource.stages])
    found: list[tuple[Slot, Candidate, str]] = []
    if scanner is not None:
        for slot in slots:
            found += _find(slot, scanner)
    chars = sum(len(slot.text) for slot in slots)
    said = [_verdict(policy, facts, stage, route, found, chars, decision) for policy in engine.policies]
    shown = msgspec.to_builtins(decision)
    del shown["body"]
    return {
        "stage": stage,
        "decision": {**shown, "rewritten": result if result is not body else None},
        "policies": said,
        "detections": [_sample(*item) for item in found[:_MAX_SHOWN]],
        "text": {"texts": len(slots), "chars": chars},
    }


def _decide(
    chosen: PolicySet, facts: CallFacts, body: Body, stage: str, route: str
) -> tuple[PolicyDecision, Body]:
    if stage == "prompt":
        decision = chosen.prompt(facts, body, route) or PolicyDecision()
        return decision, decision.body or body
    guard = chosen.response_guard(facts, route, False)
    if guard is None:
        return PolicyDecision(), body
    try:
        return guard.decision, guard.whole(body)
    except PolicyDeniedError:
        return guard.decision, body


def _slots(body: Body, stage: str) -> list[Slot]:
    if stage == "prompt":
        return list(content.request_texts(body))
    return [slot for _, slot in content.response_texts(body)]


def _find(slot: Slot, scanner: Scanner) -> list[tuple[Slot, Candidate, str]]:
    if not slot.json:
        return [(slot, match, slot.text[match.start : match.end]) for match in scanner.candidates(slot.text)]
    found: list[tuple[Slot, Candidate, str]] = []

    def judge(match: Candidate) -> bool:
        found.append((slot, match, ""))
        return False

    JsonStream(scanner, judge).feed(slot.text, final=True)
    return found


def _verdict(
    policy: CompiledPolicy, facts: CallFacts, stage: str, route: str,
    found: list[tuple[Slot, Candidate, str]], chars: int, decision: PolicyDecision,
) -> dict[str, Any]:  # fmt: skip
    said: dict[str, Any] = {**describe(policy), "applied": False, "condition": None}
    why = _outside(policy, facts, stage)
    if why:
        return {**said, "why": why}
    own = [match for _, match, _ in found if policy.wants(match)]
    counts: dict[str, int] = {}
    for match in own:
        counts[match.name] = counts.get(match.name, 0) + 1
    observed = Observed(counts, max((match.score for match in own), default=0.0), chars, policy.known)
    situation = Situation(stage, route, facts, observed)
    verdict = Conditions([policy]).ask(situation, {policy.name: observed})[0]
    reader = Reader(policy.program.references)
    said["values"] = dict(zip(reader.names, reader.read(situation), strict=True))
    said["condition"] = None if verdict.error else verdict.holds
    if verdict.error:
        why = f"the condition failed ({verdict.error}), which denies"
    elif not verdict.holds:
        return {**said, "why": "the condition is false"}
    else:
        why = _outcome(policy, decision, bool(own))
    said["applied"] = policy.enforced and (
        decision.policy == policy.name
        or (policy.effect == "redact" and bool(own) and decision.effect != "deny")
    )
    return {**said, "why": why if policy.enforced else f"{why}; in shadow, so only reported"}


def _outside(policy: CompiledPolicy, facts: CallFacts, stage: str) -> str:
    """Say why a policy does not concern this call at all, or nothing when it does."""
    scope = policy.resource.scope
    checks = (
        ("tenant", scope.tenants, facts.tenant),
        ("team", scope.teams, facts.team),
        ("key", scope.keys, facts.key_id),
        ("model", scope.models, facts.model),
    )
    for name, patterns, value in checks:
        if patterns and not any(matches(pattern, value) for pattern in patterns):
            return f"out of scope: {name} {value!r} is not among {', '.join(patterns)}"
    if stage not in policy.resource.stages:
        return f"not for the stage {stage!r}, only for {', '.join(policy.resource.stages)}"
    return ""


def _outcome(policy: CompiledPolicy, decision: PolicyDecision, found: bool) -> str:
    if not policy.enforced:
        return "the condition holds"
    if policy.effect == "redact" and not found:
        return "the condition holds, but its detectors found nothing to redact"
    if decision.policy == policy.name or (policy.effect == "redact" and decision.effect != "deny"):
        return "the condition holds"
    return f"the condition holds; overruled by {decision.policy!r} ({decision.effect})"


def _sample(slot: Slot, match: Candidate, text: str) -> dict[str, Any]:
    """Return a detection without its content: the first character and the length at most."""
    return {
        "class": match.name,
        "score": match.score,
        "where": ".".join(map(str, slot.path)),
        "start": match.start,
        "end": match.end,
        "sample": f"{text[:1]}{'•' * min(match.end - match.start - 1, 8)}" if text else "•" * 8,
    }
