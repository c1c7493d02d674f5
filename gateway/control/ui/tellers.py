"""Each stage's decision in plain words. A teller takes out of ``rest`` what it has put into words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gateway.control.ui.passages import Passage, Table, say
from gateway.control.ui.words import count, rate, usd
from observability.record import CallRecord, Decision

Teller = Callable[[CallRecord, Decision, dict[str, Any], Passage], None]

_ROUTE_REASONS = {
    "least_work": "It had the least work waiting.",
    "cached_prefix": "It already holds the beginning of this prompt in its cache.",
    "only_tried_left": "Only replicas that this call had already tried were left.",
    "fail_open": "No replica reported itself healthy, so the health reports were not believed.",
    "only_replica": "It is the only replica of its pool.",
    "no_choice": "There was one place to send it.",
    "no_room": "No replica had room.",
}
_REJECTIONS = {
    "down": "does not answer its health checks",
    "stale": "its load is not known: it stopped reporting",
    "breaker_open": "rests after too many failures",
    "already_tried": "was already tried by this call",
    "full": "has no room for a call of this size",
    "unsupported": "cannot do what the call asks for",
}


def _names(values: Any) -> str:
    items = [str(v.get("name") or v.get("scope")) if isinstance(v, Mapping) else str(v) for v in values or ()]
    return ", ".join(items)


def _tell_auth(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    key, team, role = (str(rest.pop(name, "") or "") for name in ("key", "team", "role"))
    rest.pop("source", None)
    if decision.outcome == "allowed":
        who = f"{decision.reason or 'API key'} {key or call.key_id}".strip()
        place = f"team {team or call.team} of {call.tenant}" if team or call.team else f"tenant {call.tenant}"
        say(passage, f"{who}, {place}" + (f", role {role.replace('_', ' ')}" if role else ""))
        if call.run_id:
            say(passage, f"on behalf of step {call.step or '?'} of run {call.run_id}")
    else:
        say(passage, decision.reason or call.error_message)


def _tell_limits(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    """Tell a stage that is not known here."""
    say(passage, decision.reason)
    scopes = rest.pop("scopes", None)
    if decision.outcome == "allowed" and scopes:
        words = (
            "All of these were reserved at once, or none: "
            if len(scopes) > 1
            else "Counted against the limits of: "
        )
        say(passage, words + _names(scopes))
    hold = rest.pop("hold_usd_micros", None)
    if hold:
        say(passage, f"{usd(hold)} was held for the worst case and given back down to the real cost")
    granted, wished = rest.pop("granted_output_tokens", None), rest.pop("requested_output_tokens", None)
    if isinstance(granted, int) and isinstance(wished, int) and granted < wished:
        say(
            passage,
            f"output was lowered to {count(granted)} of {count(wished)} tokens: the budget pays for no more",
        )
    estimated = rest.pop("estimated_tokens", None)
    if isinstance(estimated, int):
        say(
            passage,
            f"{count(estimated)} tokens were counted against the token limits until the real number was known",
        )
    rows: list[tuple[str, ...]] = []
    for name in ("requests", "tokens"):
        window = rest.pop(name, None)
        if isinstance(window, Mapping):
            rows.append(
                (f"{name.capitalize()} a minute", count(window["limit"]), count(max(0, window["remaining"])))
            )
    if rows:
        passage.tables.append(Table(("Tightest limit", "Limit", "Left"), rows))


def _tell_policy(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    policy, effect = str(rest.pop("policy", "") or ""), str(rest.pop("effect", "") or "")
    verbs = {
        "deny": "refused it",
        "redact": "redacted it",
        "route": "sent it elsewhere",
        "allow": "allowed it",
    }
    if policy:
        say(
            passage,
            f"Policy “{policy}” {verbs.get(effect, effect)}"
            + (f" ({decision.reason})" if decision.reason else ""),
        )
    else:
        say(passage, decision.reason or "No policy objected")
    route_to = rest.pop("route_to", None)
    if route_to:
        say(passage, f"It goes on as a call to {route_to}")
    message = rest.pop("message", None)
    if message:
        say(passage, f"The caller is told: {message}")
    detections = rest.pop("detections", None)
    if isinstance(detections, Mapping) and detections:
        say(passage, "Found " + ", ".join(f"{number} × {name}" for name, number in detections.items()))
    for shadow in rest.pop("shadows", None) or ():
        if isinstance(shadow, Mapping):
            name, would = (
                shadow.get("policy", "?"),
                verbs.get(str(shadow.get("effect")), str(shadow.get("effect"))),
            )
            reason = f" ({shadow['reason']})" if shadow.get("reason") else ""
            say(passage, f"In shadow, changing nothing: “{name}” would have {would}{reason}")


def _tell_route(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    target = str(rest.pop("target", "") or call.target)
    version = str(rest.pop("version", "") or call.served_as)
    reason = str(rest.pop("reason", "") or decision.reason)
    if target:
        say(passage, f"Served by {target}" + (f" as {version}" if version else ""))
    say(passage, _ROUTE_REASONS.get(reason, reason.replace("_", " ")))
    if decision.reason not in ("", reason, f"served by {target}"):
        say(passage, _ROUTE_REASONS.get(decision.reason, decision.reason))
    candidates = [c for c in rest.pop("candidates", None) or () if isinstance(c, Mapping)]
    if candidates:
        passage.tables.append(_candidates(candidates, target))
    for name in ("rejected", "passed_over"):
        for item in rest.pop(name, None) or ():
            if isinstance(item, Mapping):
                who = item.get("replica") or item.get("target") or "?"
                why = str(item.get("reason", ""))
                say(passage, f"Not {who}: it {_REJECTIONS.get(why, why.replace('_', ' '))}")


_COLUMNS = (
    ("score", "Score"),
    ("in_flight_calls", "Calls"),
    ("in_flight_tokens", "Tokens in flight"),
    ("cached_tokens", "Cached"),
    ("external_tokens", "Other load"),
)


def _candidates(candidates: list[Mapping[str, Any]], target: str) -> Table:
    columns = [(key, title) for key, title in _COLUMNS if any(key in c for c in candidates)]
    names = [str(c.get("replica") or c.get("target") or "?") for c in candidates]
    marked = [i for i, name in enumerate(names) if target in (name, target.rsplit("/", 1)[0] + "/" + name)]
    rows = [
        (name, *(_cell(c.get(key)) for key, _ in columns)) for name, c in zip(names, candidates, strict=True)
    ]
    return Table(
        ("Candidate, best first", *(title for _, title in columns)), rows, frozenset(marked[:1] or [0])
    )


def _cell(value: Any) -> str:
    return (
        count(value)
        if isinstance(value, int)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value or "–")
    )


_PRICES = {
    "target": "The price is the target's own",
    "model": "The price is the one that the model's configuration gives",
}
_USAGE = {
    "upstream": "Tokens as the upstream counted them",
    "estimated": "Tokens estimated by AIRI: the upstream gave no count",
    "none": "No tokens were used",
}


def _tell_price(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    usage_source = str(rest.pop("usage_source", "") or call.usage_source)
    source = str(rest.pop("source", "") or call.price_source)
    tokens = {name: rest.pop(f"{name}_tokens", None) for name in ("input", "cached", "output")}
    rates = {
        "input": rest.pop("input_usd_micros_per_million", None),
        "cached": rest.pop("cached_input_usd_micros_per_million", None),
        "output": rest.pop("output_usd_micros_per_million", None),
    }
    total = rest.pop("cost_usd_micros", None)
    total = call.cost_usd_micros if total is None else total
    passage.outcome = usd(total)
    cached = tokens["cached"] or call.cached_tokens
    fresh = (call.input_tokens if tokens["input"] is None else tokens["input"]) - cached
    output = call.output_tokens if tokens["output"] is None else tokens["output"]
    rows, exact = _price_rows(((fresh, rates["input"], "input"), (cached, rates["cached"] or rates["input"], "input from cache"), (output, rates["output"], "output")))  # fmt: skip
    say(passage, _USAGE.get(usage_source, usage_source))
    if source == "hold":
        say(passage, "no price is known for what served, so the amount that was held is charged")
    elif source:
        say(passage, _PRICES.get(source, f"Price from {source.replace('_', ' ')}"))
    if rows:
        rows.append(("Together", "", "", usd(total)))
        passage.tables.append(Table(("Tokens", "Number", "Price", "Cost"), rows, frozenset({len(rows) - 1})))
        if abs(exact - total) > 1:
            say(
                passage, "the lines add up to another sum: a tier of the price, a minimum or rounding applies"
            )


def _price_rows(parts: Iterable[tuple[int, int | None, str]]) -> tuple[list[tuple[str, ...]], float]:
    rows: list[tuple[str, ...]] = []
    exact = 0.0
    for number, per_million, name in parts:
        if number and per_million is not None:
            cost = number * per_million / 1_000_000
            exact += cost
            rows.append((name.capitalize(), count(number), rate(per_million), usd(cost)))
    return rows, exact


def tell_other(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    """Tell a stage that is not known here."""
    say(passage, decision.reason)


TELLERS: dict[str, Teller] = {
    "auth": _tell_auth,
    "limits": _tell_limits,
    "policy": _tell_policy,
    "response_policy": _tell_policy,
    "route": _tell_route,
    "price": _tell_price,
}
