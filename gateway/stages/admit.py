"""Reserve the call's share of every limit and budget, in one round trip, before anything is sent."""

from __future__ import annotations

import hashlib
import time

from airi.errors import AiriError
from gateway.exchange import Exchange
from gateway.plan import Plan
from gateway.runtime import Runtime
from gateway.usage import BYTES_PER_TOKEN
from policies.admission import AdmissionRequest, Admitted, Refused, Replay
from policies.errors import BudgetExceededError

# What a chat template, tool formats and special tokens may add to the text of a request, in tokens.
_TEMPLATE_TOKENS = 256
_MAX_OUTPUT_FIELDS = ("max_completion_tokens", "max_tokens")


async def admit(runtime: Runtime, exchange: Exchange) -> Replay | None:
    """Reserve; raise the refusal's error. Returns the reply to repeat when the idempotency key is known."""
    since = time.monotonic_ns()
    plan = exchange.plan
    assert plan is not None
    if not plan.priced and (plan.scopes.has_hard or _run_budget(exchange) is not None):
        raise BudgetExceededError(
            f"The model '{plan.alias}' has no price, so a hard budget cannot answer for it. Set 'price' on the Model."
        )
    request = _request(runtime, exchange, plan)
    exchange.reservation_id = request.reservation_id
    decision = await runtime.admission.reserve(request)
    if isinstance(decision, Admitted):
        _admitted(exchange, decision, request, since)
        runtime.watcher.seen(decision.snapshot, decision.keys)
        return None
    exchange.reservation_id = ""
    if isinstance(decision, Replay):
        exchange.replayed = True
        exchange.decide("limits", since, "replayed", "this idempotency key has an answer", {})
        return decision
    error: AiriError = decision.error()
    details = (
        {"scope": decision.scope, "kind": decision.kind, "limit": decision.limit}
        if isinstance(decision, Refused)
        else {}
    )
    exchange.decide("limits", since, "denied", error.message, details)
    raise error


def wished_output(exchange: Exchange, plan: Plan) -> int:
    """Return the output tokens per choice that the caller asks for, else what the model's contract allows."""
    if not exchange.operation.generates:
        return 0
    for name in _MAX_OUTPUT_FIELDS:
        value = exchange.body.get(name)
        if value is not None:
            return int(value)
    return plan.max_output_tokens


def choices(exchange: Exchange) -> int:
    """Return how many answers the call asks for (``n``)."""
    return (exchange.body.get("n") or 1) if exchange.operation.generates else 1


def _run_budget(exchange: Exchange) -> int | None:
    return exchange.run.budget_usd_micros if exchange.run is not None else None


def _request(runtime: Runtime, exchange: Exchange, plan: Plan) -> AdmissionRequest:
    key = exchange.key
    assert key is not None
    # A token is at least one byte of text, so the bytes of the body bound the input from above.
    exchange.input_bound = exchange.input_bytes + _TEMPLATE_TOKENS
    exchange.input_estimate = exchange.input_bytes // BYTES_PER_TOKEN + 1
    wished = wished_output(exchange, plan)
    count = choices(exchange)
    predicted = runtime.admission.estimate.output_tokens(key.tenant, plan.alias, wished) * count
    exchange.predicted_output = predicted
    estimate = (exchange.input_estimate * plan.input_price + predicted * plan.output_price) // 1_000_000 + 1
    run = exchange.run
    return AdmissionRequest(
        reservation_id=exchange.span_id + exchange.trace_id,
        scopes=plan.scopes,
        estimated_tokens=exchange.input_estimate + predicted,
        input_usd_micros=plan.input_cost(exchange.input_bound),
        output_usd_micros_per_million=plan.output_price * count,
        output_tokens=wished,
        min_output_tokens=_least_output(exchange, wished),
        estimate_usd_micros=estimate if plan.input_price or plan.output_price else 0,
        user=exchange.user or None,
        idempotency=_claim(exchange),
        run_id=run.run_id if run is not None else None,
        step=run.step if run is not None else None,
        run_budget_usd_micros=_run_budget(exchange),
        trace_id=exchange.trace_id,
    )


def _least_output(exchange: Exchange, wished: int) -> int:
    """Return the output below which a call is refused rather than shortened; a run's step is never cut short silently."""
    if not exchange.operation.generates:
        return 0
    return wished if _run_budget(exchange) is not None else 1


def _claim(exchange: Exchange) -> tuple[str, str] | None:
    if not exchange.idempotency_key:
        return None
    assert exchange.key is not None
    digest = hashlib.sha256(exchange.operation.path.encode() + b"\0" + exchange.request.body).hexdigest()
    return f"{exchange.key.id}:{exchange.idempotency_key}", digest


def _admitted(exchange: Exchange, admitted: Admitted, request: AdmissionRequest, since: int) -> None:
    exchange.admitted = admitted
    exchange.reservation_id = admitted.reservation_id
    plan = exchange.plan
    assert plan is not None
    lowered = admitted.output_tokens < request.output_tokens
    if lowered:
        reason = "within every limit; output lowered to what the budget still pays for"
    elif admitted.degraded:
        reason = "Redis is away: let in under this process's own cap"
    else:
        reason = "within every limit"
    details = {
        "scopes": plan.scopes.names,
        "hold_usd_micros": admitted.hold_usd_micros,
        "granted_output_tokens": admitted.output_tokens,
        "requested_output_tokens": request.output_tokens,
        "estimated_tokens": request.estimated_tokens,
    }
    if admitted.requests is not None:
        details["requests"] = {"limit": admitted.requests.limit, "remaining": admitted.requests.remaining}
    if admitted.tokens is not None:
        details["tokens"] = {"limit": admitted.tokens.limit, "remaining": admitted.tokens.remaining}
    exchange.decide("limits", since, "allowed", reason, details)
    exchange.mark("admit")
