"""What the tenant's policies say of the prompt, before it goes anywhere."""

from __future__ import annotations

import time

from gateway.dialects.responses.native import NativeCall
from gateway.exchange import Exchange
from gateway.stages.native import native_of
from policies.engine import CallFacts, PolicyDecision
from policies.errors import PolicyDeniedError


def apply_prompt_policies(exchange: Exchange) -> None:
    """Evaluate; rewrite the body, change the route, or raise :class:`PolicyDeniedError`."""
    plan, key = exchange.plan, exchange.key
    assert plan is not None
    assert key is not None
    since = time.monotonic_ns()
    native = native_of(exchange)
    facts = _facts(exchange, native)
    body = exchange.body if native is None else native.body
    decision = plan.policies.prompt(facts, body, exchange.operation.name)
    exchange.guard = plan.policies.response_guard(facts, exchange.operation.name, exchange.stream)
    if decision is None:
        exchange.mark("policy")
        return
    note(exchange, "policy", decision, since)
    exchange.mark("policy")
    if decision.effect == "deny":
        raise PolicyDeniedError(decision)
    if decision.body is not None:
        exchange.body = decision.body if native is None else native.rewritten(decision.body)
    if decision.route_to:
        rerouted = plan.reroutes.get(decision.route_to)
        if rerouted is None:
            raise PolicyDeniedError(decision)
        exchange.route = rerouted
        exchange.alias = rerouted.alias


def note(exchange: Exchange, stage: str, decision: PolicyDecision, since: int) -> None:
    """Write a policy decision down; never the text it was about."""
    if decision.effect != "allow":
        exchange.policy_hit = decision.policy
    for name, count in decision.detections.items():
        exchange.detections[name] = exchange.detections.get(name, 0) + count
    outcome = {"allow": "allowed", "deny": "denied", "redact": "redacted", "route": "routed"}[decision.effect]
    exchange.decide(
        stage, since, outcome, decision.reason,
        {
            "policy": decision.policy,
            "effect": decision.effect,
            "message": decision.message,
            "route_to": decision.route_to,
            "shadows": decision.shadows,
            "detections": decision.detections,
        },
    )  # fmt: skip


def _facts(exchange: Exchange, native: NativeCall | None) -> CallFacts:
    plan, key, body = exchange.plan, exchange.key, exchange.body
    tools = _tool_names(body.get("tools"))
    assert plan is not None
    assert key is not None
    return CallFacts(
        tenant=key.tenant,
        team=key.team or "",
        key_id=key.id,
        user=exchange.user,
        role=key.role,
        model=plan.alias,
        region=plan.region,
        simulated=plan.route.simulated,
        stream=exchange.stream,
        n=body.get("n") or 1,
        max_tokens=exchange.admitted.output_tokens if exchange.admitted is not None else 0,
        tags=exchange.tags,
        tools=tools if native is None else tools + native.hosted,
    )


def _tool_names(tools: object) -> list[str]:
    if not isinstance(tools, list):
        return []
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return [str(function.get("name", "")) for function in functions if isinstance(function, dict)]
