"""From admission's public types to what travels."""

from __future__ import annotations

import hashlib

from policies.admission.types import AdmissionRequest, Settlement
from policies.admission.wire import Request, SettlementWire
from policies.limits import user_suffix


def to_wire(request: AdmissionRequest) -> Request:
    """Return a request as the scripts read it."""
    scopes = request.scopes
    claim = body = suffix = ""
    if request.idempotency is not None:
        key, body = request.idempotency
        claim = hashlib.sha256(f"{scopes.key_id}\0{key}".encode(errors="surrogatepass")).hexdigest()[:32]
    user = request.user or ""
    if not user.isascii():
        user = user.encode(errors="replace").decode()  # half of a surrogate pair cannot travel
    if user and scopes.user_limited:
        suffix = user_suffix(user)
    budget = request.run_budget_usd_micros
    return Request(
        request.reservation_id,
        scopes.tenant,
        scopes.team,
        scopes.key_id,
        user[:256],
        scopes.model,
        request.run_id or "",
        request.step or "",
        request.trace_id,
        request.estimated_tokens,
        request.input_usd_micros,
        request.output_usd_micros_per_million,
        request.min_output_tokens,
        request.output_tokens,
        request.estimate_usd_micros,
        request.lease_ms,
        claim,
        body,
        -1 if budget is None else budget,
        0,
        suffix,
    )


def settlement_wire(settlement: Settlement) -> SettlementWire:
    """Return a settlement as the scripts read it."""
    return SettlementWire(
        settlement.reservation_id,
        settlement.usd_micros,
        settlement.input_tokens + settlement.output_tokens,
        settlement.input_tokens,
        settlement.output_tokens,
        settlement.cached_tokens,
        settlement.outcome,
        settlement.idempotency_reference or "",
        0,
        settlement.version,
        settlement.target,
        settlement.trace_id,
        settlement.usage_source,
        settlement.price_source,
        int(settlement.simulated),
    )
