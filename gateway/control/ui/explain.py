"""Why a call went as it did, in plain words: each recorded decision becomes a passage of the trace page."""

from __future__ import annotations

import json

from gateway.control.ui.passages import Passage, Table, say
from gateway.control.ui.tellers import TELLERS, tell_other
from gateway.control.ui.words import duration
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
_OUTCOMES = {
    "status": "refused by the upstream",
    "error": "failed",
    "cancelled": "the caller left",
    "queue_full": "the waiting room was full",
    "queue_timeout": "waited too long for its turn",
    "no_target_available": "no replica could take it",
}


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
    tell = TELLERS.get(decision.stage, tell_other)
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
        say(
            passage,
            f"Answered by {last.target} after {len(failed)} other {'try' if len(failed) == 1 else 'tries'}; the caller saw none of it",
        )
    elif last.outcome == "ok":
        say(passage, f"Answered by {last.target}")
    else:
        say(passage, f"no attempt brought an answer; the last ended as: {outcome_words(last)}")
    rows = [_attempt_row(number, attempt) for number, attempt in enumerate(call.attempts, 1)]
    marked = frozenset({len(rows) - 1}) if last.outcome == "ok" else frozenset()
    passage.tables.append(
        Table(("#", "Target", "End", "Waited", "First byte", "Took"), rows, marked, words=3)
    )
    return passage


def outcome_words(attempt: Attempt) -> str:
    """Return how an attempt ended, in words."""
    if attempt.outcome == "ok":
        return "answered"
    outcome = attempt.error if attempt.outcome == "error" and attempt.error in _OUTCOMES else attempt.outcome
    words = _OUTCOMES.get(outcome, outcome.replace("_", " "))
    if attempt.status:
        words += f" (status {attempt.status})"
    detail = attempt.reason or attempt.error
    return f"{words}: {detail}" if detail and detail != outcome else words


def _attempt_row(number: int, attempt: Attempt) -> tuple[str, ...]:
    return (
        str(number),
        attempt.target + (" (simulated)" if attempt.simulated else ""),
        outcome_words(attempt),
        duration(attempt.wait_us) if attempt.wait_us else "–",
        duration(attempt.first_byte_us) if attempt.first_byte_us else "–",
        duration(attempt.duration_us),
    )
