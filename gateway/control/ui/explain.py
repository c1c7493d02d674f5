"""Why a call went as it did, in plain words: each recorded decision becomes a passage of the trace page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.control.ui.words import count, duration, rate, usd
from observability.record import Attempt, CallRecord, Decision

STAGES: tuple[tuple[str, str], ...] = (
    ("auth", "Who is calling"),
    ("limits", "Limits and budgets"),
    ("policy", "Policy on the request"),
    ("route", "Where it could go"),
    ("attempts", "What was tried"),
    ("response_policy", "Policy on the answer"),
    ("price", "What it cost"),
)
_ALWAYS = ("auth", "limits", "policy", "route", "attempts", "price")

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
_OUTCOMES = {
    "ok": "answered",
    "status": "refused by the upstream",
    "cancelled": "the caller left",
    "queue_full": "the waiting room was full",
    "queue_timeout": "waited too long for its turn",
    "no_target_available": "no replica could take it",
}


@dataclass(slots=True)
class Table:
    """A small table of a passage. ``marked`` are the rows that stand for what was chosen."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    marked: frozenset[int] = frozenset()
    words: int = 1
    """The first so many columns hold words, the others numbers."""


@dataclass(slots=True)
class Passage:
    """One stage of the decision timeline."""

    stage: str
    title: str
    tone: str = "quiet"
    """``ok``, ``warn``, ``bad`` or ``quiet`` (not reached)."""
    outcome: str = ""
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    at_us: int = 0
    took_us: int = 0
    rest: str = ""
    """What the record holds beyond the words, as JSON."""


def timeline(call: CallRecord) -> list[Passage]:
    """Return the passages of a call in the order of the pipeline, those that it never reached too."""
    by_stage: dict[str, list[Decision]] = {}
    for decision in call.decisions:
        by_stage.setdefault(decision.stage, []).append(decision)
    passages: list[Passage] = []
    known = dict(STAGES)
    for stage, title in STAGES:
        if stage == "attempts":
            passages.append(_attempts(call, title))
        elif stage in by_stage:
            passages += (_passage(call, decision, title) for decision in by_stage[stage])
        elif stage in _ALWAYS:
            passages.append(_not_there(call, stage, title))
    for decision in call.decisions:
        if decision.stage not in known:
            passages.append(_passage(call, decision, decision.stage.replace("_", " ").capitalize()))
    return passages


def _not_there(call: CallRecord, stage: str, title: str) -> Passage:
    if stage == "policy" and any(d.stage == "route" for d in call.decisions):
        return Passage(stage, title, "ok", "nothing to do", ["No policy applies to this call."])
    if stage == "price" and not call.cost_usd_micros:
        return Passage(
            stage, title, "quiet", "no charge", ["Nothing was sent upstream, so nothing is charged."]
        )
    if stage == "auth" and call.status == 401:
        return Passage(stage, title, "bad", "refused", [call.error_message or "The key was not accepted."])
    if stage == "limits" and call.replayed:
        return Passage(
            stage, title, "ok", "repeated", ["The answer to this idempotency key was already known."]
        )
    return Passage(stage, title, "quiet", "not reached", ["The call ended before this stage."])


def _passage(call: CallRecord, decision: Decision, title: str) -> Passage:
    tell = _TELLERS.get(decision.stage, _tell_other)
    passage = Passage(
        stage=decision.stage,
        title=title,
        tone=_tone(decision.outcome),
        outcome=decision.outcome.replace("_", " "),
        at_us=decision.at_us,
        took_us=decision.took_us,
    )
    rest = dict(decision.details)
    tell(call, decision, rest, passage)
    shown = {key: value for key, value in rest.items() if value not in (None, "", [], {}, ())}
    if shown:
        passage.rest = json.dumps(shown, indent=2, default=str, ensure_ascii=False)
    return passage


def _tone(outcome: str) -> str:
    if outcome in ("denied", "refused", "failed", "error"):
        return "bad"
    return "warn" if outcome in ("redacted", "rerouted", "routed", "shadowed", "degraded") else "ok"


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?:" else ".")


def _names(values: Any) -> str:
    items = [str(v.get("name") or v.get("scope")) if isinstance(v, Mapping) else str(v) for v in values or ()]
    return ", ".join(items)


def _say(passage: Passage, *texts: str) -> None:
    passage.lines += (sentence for text in texts if (sentence := _sentence(text)))


def _tell_auth(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    key, team, role = (str(rest.pop(name, "") or "") for name in ("key", "team", "role"))
    rest.pop("source", None)
    if decision.outcome == "allowed":
        who = f"{decision.reason or 'API key'} {key or call.key_id}".strip()
        place = f"team {team or call.team} of {call.tenant}" if team or call.team else f"tenant {call.tenant}"
        _say(passage, f"{who}, {place}" + (f", role {role.replace('_', ' ')}" if role else ""))
        if call.run_id:
            _say(passage, f"on behalf of step {call.step or '?'} of run {call.run_id}")
    else:
        _say(passage, decision.reason or call.error_message)


def _tell_limits(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    _say(passage, decision.reason)
    scopes = rest.pop("scopes", None)
    if decision.outcome == "allowed" and scopes:
        _say(passage, f"All of these were reserved at once, or none: {_names(scopes)}")
    hold = rest.pop("hold_usd_micros", None)
    if hold:
        _say(passage, f"{usd(hold)} was held for the worst case and given back down to the real cost")
    granted, wished = rest.pop("granted_output_tokens", None), rest.pop("requested_output_tokens", None)
    if isinstance(granted, int) and isinstance(wished, int) and granted < wished:
        _say(
            passage,
            f"output was lowered to {count(granted)} of {count(wished)} tokens: the budget pays for no more",
        )
    estimated = rest.pop("estimated_tokens", None)
    if isinstance(estimated, int):
        _say(
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
        _say(
            passage,
            f"Policy “{policy}” {verbs.get(effect, effect)}"
            + (f" ({decision.reason})" if decision.reason else ""),
        )
    else:
        _say(passage, decision.reason or "No policy objected")
    route_to = rest.pop("route_to", None)
    if route_to:
        _say(passage, f"It goes on as a call to {route_to}")
    message = rest.pop("message", None)
    if message:
        _say(passage, f"The caller is told: {message}")
    detections = rest.pop("detections", None)
    if isinstance(detections, Mapping) and detections:
        _say(passage, "Found " + ", ".join(f"{number} × {name}" for name, number in detections.items()))
    for shadow in rest.pop("shadows", None) or ():
        if isinstance(shadow, Mapping):
            name, would = (
                shadow.get("policy", "?"),
                verbs.get(str(shadow.get("effect")), str(shadow.get("effect"))),
            )
            reason = f" ({shadow['reason']})" if shadow.get("reason") else ""
            _say(passage, f"In shadow, changing nothing: “{name}” would have {would}{reason}")


def _tell_route(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    target = str(rest.pop("target", "") or call.target)
    version = str(rest.pop("version", "") or call.version)
    reason = str(rest.pop("reason", "") or decision.reason)
    if target:
        _say(passage, f"Served by {target}" + (f" as {version}" if version else ""))
    _say(passage, _ROUTE_REASONS.get(reason, reason.replace("_", " ")))
    if decision.reason and decision.reason != reason:
        _say(passage, _ROUTE_REASONS.get(decision.reason, decision.reason))
    candidates = [c for c in rest.pop("candidates", None) or () if isinstance(c, Mapping)]
    if candidates:
        passage.tables.append(_candidates(candidates, target))
    for name in ("rejected", "passed_over"):
        for item in rest.pop(name, None) or ():
            if isinstance(item, Mapping):
                who = item.get("replica") or item.get("target") or "?"
                why = str(item.get("reason", ""))
                _say(passage, f"Not {who}: it {_REJECTIONS.get(why, why.replace('_', ' '))}")


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


def _attempts(call: CallRecord, title: str) -> Passage:
    if not call.attempts:
        if call.replayed:
            return Passage(
                "attempts",
                title,
                "ok",
                "none",
                ["The stored answer was repeated; nothing was sent upstream."],
            )
        return Passage("attempts", title, "quiet", "not reached", ["Nothing was sent upstream."])
    last = call.attempts[-1]
    failed = [attempt for attempt in call.attempts if attempt.outcome != "ok"]
    passage = Passage(
        "attempts",
        title,
        "ok" if last.outcome == "ok" else "bad",
        f"{len(call.attempts)}",
        at_us=call.attempts[0].at_us,
    )
    passage.outcome = "1 attempt" if len(call.attempts) == 1 else f"{len(call.attempts)} attempts"
    if last.outcome == "ok" and failed:
        passage.tone = "warn"
        _say(
            passage,
            f"Answered by {last.target} after {len(failed)} other {'try' if len(failed) == 1 else 'tries'}; the caller saw none of it",
        )
    elif last.outcome == "ok":
        _say(passage, f"Answered by {last.target}")
    else:
        _say(passage, f"no attempt brought an answer; the last ended as: {outcome_words(last)}")
    rows = [_attempt_row(number, attempt) for number, attempt in enumerate(call.attempts, 1)]
    marked = frozenset({len(rows) - 1}) if last.outcome == "ok" else frozenset()
    passage.tables.append(
        Table(("#", "Target", "End", "Waited", "First byte", "Took"), rows, marked, words=3)
    )
    return passage


def outcome_words(attempt: Attempt) -> str:
    """Return how an attempt ended, in words."""
    words = _OUTCOMES.get(attempt.outcome, attempt.outcome.replace("_", " "))
    if attempt.status and attempt.outcome != "ok":
        words += f" (status {attempt.status})"
    detail = attempt.reason or attempt.error
    return f"{words}: {detail}" if detail and attempt.outcome != "ok" else words


def _attempt_row(number: int, attempt: Attempt) -> tuple[str, ...]:
    return (
        str(number),
        attempt.target + (" (simulated)" if attempt.simulated else ""),
        outcome_words(attempt),
        duration(attempt.wait_us) if attempt.wait_us else "–",
        duration(attempt.first_byte_us) if attempt.first_byte_us else "–",
        duration(attempt.duration_us),
    )


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
    _say(passage, _USAGE.get(usage_source, usage_source))
    if source == "hold":
        _say(passage, "no price is known for what served, so the amount that was held is charged")
    elif source:
        _say(passage, f"Price from {source.replace('_', ' ')}")
    if rows:
        rows.append(("Together", "", "", usd(total)))
        passage.tables.append(Table(("Tokens", "Number", "Price", "Cost"), rows, frozenset({len(rows) - 1})))
        if abs(exact - total) > 1:
            _say(
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


def _tell_other(call: CallRecord, decision: Decision, rest: dict[str, Any], passage: Passage) -> None:
    _say(passage, decision.reason)


_TELLERS: dict[str, Callable[[CallRecord, Decision, dict[str, Any], Passage], None]] = {
    "auth": _tell_auth,
    "limits": _tell_limits,
    "policy": _tell_policy,
    "response_policy": _tell_policy,
    "route": _tell_route,
    "price": _tell_price,
}
