"""Replace the hold by what the call really cost; idempotent, in the background, confirmed by admission's own queue."""

from __future__ import annotations

import time

from gateway.exchange import Exchange
from gateway.runtime import Runtime
from gateway.stages.admit import choices
from gateway.usage import Usage, estimated
from policies.admission import Settlement


def settle(runtime: Runtime, exchange: Exchange) -> None:
    """Close the answer and note the settlement of whatever was reserved; the second call does nothing."""
    if exchange.settled:
        return
    exchange.settled = True
    usage = _final_usage(exchange)
    answer = exchange.answer
    if answer is not None:
        answer.close(
            usage.output_tokens, usage.input_tokens, usage.cached_tokens, failed=exchange.stream_failed
        )
    if not exchange.reservation_id:
        return
    since = time.monotonic_ns()
    _price(exchange, usage)
    key, plan = exchange.key, exchange.plan
    assert key is not None
    assert plan is not None
    if usage.source == "upstream" and usage.output_tokens:
        runtime.admission.estimate.learn(
            key.tenant, plan.alias, usage.output_tokens // choices(exchange) or 1
        )
    runtime.admission.settle(
        Settlement(
            reservation_id=exchange.reservation_id,
            usd_micros=exchange.cost_usd_micros,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_tokens,
            outcome=outcome(exchange),
            version=answer.version if answer is not None else "",
            target=answer.target if answer is not None else "",
            trace_id=exchange.trace_id,
            usage_source=usage.source,
            price_source=exchange.price_source,
            simulated=answer.simulated if answer is not None else False,
            idempotency_reference=exchange.reply_reference or None,
        )
    )
    _explain(exchange, usage, since)
    exchange.mark("settle")


def outcome(exchange: Exchange) -> str:
    """Return the ledger's word for how the call ended."""
    if exchange.status == 499:
        return "cancelled"
    return "ok" if exchange.status < 400 and not exchange.error_code else exchange.error_code or "error"


def _final_usage(exchange: Exchange) -> Usage:
    """Return the upstream's usage, else an estimate of what was streamed, else nothing."""
    if exchange.usage is not None:
        return exchange.usage
    answer, call = exchange.answer, exchange.call
    reached = (answer is not None and answer.status < 400) or (call is not None and call.sent)
    if not reached:
        exchange.usage = Usage()
    else:
        # The caller left, or the upstream does not count: what arrived is counted by its events. What was promised
        # beyond it may have been made: see _price.
        exchange.usage = estimated(exchange.input_estimate, exchange.chunks)
    return exchange.usage


def work_out_cost(exchange: Exchange) -> None:
    """Set what a finished call costs; :func:`settle` comes to the same."""
    _price(exchange, _final_usage(exchange))


def _price(exchange: Exchange, usage: Usage) -> None:
    answer = exchange.answer
    if answer is not None and answer.price is not None:
        exchange.cost_usd_micros = answer.price.cost_usd_micros(
            usage.input_tokens, usage.output_tokens, usage.cached_tokens
        )
        exchange.price_source = answer.price.source
        _keep_promise(exchange, usage)
    elif usage.source != "none":
        plan, admitted = exchange.plan, exchange.admitted
        assert plan is not None
        # Without a price of its own (or cut off before it was known which target serves) a call settles at its hold.
        exchange.cost_usd_micros = admitted.hold_usd_micros if admitted is not None else 0
        exchange.price_source = "hold"


def _keep_promise(exchange: Exchange, usage: Usage) -> None:
    """Under a hard budget, charge the hold where no upstream said what was used.

    A caller may leave and the upstream go on to the ``max_tokens`` that it was promised: a hard budget pays for what is
    not known, else it could be overspent. A soft budget pays for what arrived.
    """
    plan, admitted = exchange.plan, exchange.admitted
    if usage.source != "estimated" or plan is None or admitted is None or not plan.scopes.has_hard:
        return
    if admitted.hold_usd_micros > exchange.cost_usd_micros:
        exchange.cost_usd_micros = admitted.hold_usd_micros
        exchange.price_source = "hold"


def _explain(exchange: Exchange, usage: Usage, since: int) -> None:
    answer = exchange.answer
    details: dict[str, object] = {
        "input_tokens": usage.input_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "usage_source": usage.source,
        "source": exchange.price_source,
        "cost_usd_micros": exchange.cost_usd_micros,
    }
    if answer is not None and answer.price is not None:
        rates = answer.price.rates[0]
        details["input_usd_micros_per_million"] = rates.input
        details["cached_input_usd_micros_per_million"] = rates.cached_input
        details["output_usd_micros_per_million"] = rates.output
    exchange.decide(
        "price",
        since,
        "computed",
        f"tokens are {usage.source}, price from {exchange.price_source or 'nobody'}",
        details,
    )
