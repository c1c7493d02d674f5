"""Which policies apply to a call, and what they say of its prompt and of its answer.

Deny wins over route, route over redact, redact over allow. ``allow`` exempts from nothing: it only says why a call
passed. So no policy, of whatever tier, can loosen another. A condition that fails in an enforced policy denies.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from airi.config.document import ConfigDocument
from airi.pace import Pace
from policies import content, variables
from policies.content import Body, Path, Slot
from policies.detectors import Candidate, Scanner, Words
from policies.detectors.spans import WORD
from policies.documents import CompiledPolicy, compile_policies
from policies.engine_conditions import Conditions, Verdict
from policies.engine_guard import ResponseGuard
from policies.engine_types import CallFacts, PolicyDecision
from policies.redaction import JsonStream, TextStream
from policies.redaction.text import apply
from policies.variables import NOTHING, Observed, Reader, Situation

__all__ = ["CallFacts", "PolicyDecision", "PolicyEngine", "PolicySet", "ResponseGuard"]

_CACHED = 4_096
_STRENGTH = {"deny": 3, "route": 2, "redact": 1, "allow": 0}
ERROR_REASON = "POLICY_ERROR"


class PolicyEngine:
    """All policies of a snapshot. ``select`` is cached; the cache is bounded and forgotten with the snapshot."""

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self.policies = tuple(policies)
        self._by_tenant: dict[str, list[CompiledPolicy]] = {}
        self._wide: list[CompiledPolicy] = []
        for policy in policies:
            if policy.tenants is None:
                self._wide.append(policy)
            for name in policy.tenants or ():
                self._by_tenant.setdefault(name, []).append(policy)
        self._sets: dict[tuple[str, str, str, str], PolicySet] = {}
        self._shared: dict[tuple[str, ...], PolicySet] = {}

    @classmethod
    def compile(
        cls, document: ConfigDocument, before: PolicyEngine | None = None, pace: Pace | None = None
    ) -> PolicyEngine:
        """Compile a document's policies; raise :class:`~policies.errors.PolicyInputError` naming every problem.

        What did not change since ``before`` is taken over, compiled policies and sets of them alike.
        """
        engine = cls(compile_policies(document, before.policies if before is not None else (), pace))
        if before is not None:
            engine._take_over(before, pace)
        return engine

    def changed_since(self, before: PolicyEngine) -> list[CompiledPolicy]:
        """Return the policies that only one of the two engines has, or has in another form."""
        ours, theirs = set(map(id, self.policies)), set(map(id, before.policies))
        return [
            *(policy for policy in self.policies if id(policy) not in theirs),
            *(policy for policy in before.policies if id(policy) not in ours),
        ]

    def _take_over(self, before: PolicyEngine, pace: Pace | None) -> None:
        gone = set(map(id, before.policies)).difference(map(id, self.policies))
        # A copy: the event loop goes on filling the earlier engine's while this one is made in a thread.
        for names, found in before._shared.copy().items():
            if gone.isdisjoint(found.ids):
                self._shared[names] = found
            if pace is not None:
                pace()

    def select(self, tenant: str, team: str, key_id: str, model: str) -> PolicySet:
        """Return the policies whose scope holds these."""
        key = (tenant, team, key_id, model)
        found = self._sets.get(key)
        if found is None:
            if len(self._sets) >= _CACHED:
                self._sets.clear()
            found = self._sets[key] = self._select(key)
        return found

    def _select(self, key: tuple[str, str, str, str]) -> PolicySet:
        near = [policy for policy in self._by_tenant.get(key[0], ()) if policy.covers(*key)]
        chosen = near + [policy for policy in self._wide if policy.covers(*key)]
        chosen.sort(key=lambda policy: policy.rank)
        # Most keys and models share the same policies: what is compiled for them is shared too.
        names = tuple(policy.name for policy in chosen)
        found = self._shared.get(names)
        if found is None:
            if len(self._shared) >= _CACHED:
                self._shared.clear()
            found = self._shared[names] = PolicySet(chosen)
        return found


class PolicySet:
    """The policies of one scope, with what their stages need made ready."""

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self.policies = tuple(policies)
        self.ids = frozenset(map(id, policies))
        self.route_targets = tuple(
            sorted({policy.resource.route_to for policy in policies if policy.resource.route_to})
        )
        """Aliases that a policy may send the call to."""
        self._prompt = Stage([policy for policy in policies if "prompt" in policy.resource.stages])
        self._response = Stage([policy for policy in policies if "response" in policy.resource.stages])

    def prompt(self, facts: CallFacts, body: Body, route: str) -> PolicyDecision | None:
        """Decide on a request; ``None`` when no policy speaks of prompts. ``decision.body`` is the rewritten request."""
        if not self._prompt.policies:
            return None
        since = time.perf_counter_ns()
        decision = self._prompt.decide(Situation("prompt", route, facts, NOTHING), body)
        decision.elapsed_ns = time.perf_counter_ns() - since
        return decision

    def response_guard(self, facts: CallFacts, route: str, stream: bool) -> ResponseGuard | None:
        """Return what watches over the answer, or ``None`` when it may pass untouched."""
        if not self._response.policies or route == "embeddings":
            return None
        situation = Situation("response", route, facts, NOTHING)
        return ResponseGuard(self._response.policies, self._response.scanner, situation, stream)


class Stage:
    """The policies of one stage."""

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self.policies = tuple(policies)
        self.scanner = make_scanner(policies)
        self._conditions = Conditions(policies)
        references = frozenset(name for policy in policies for name in policy.program.references)
        self._reads_text = bool(references & variables.TEXT)
        self._facts = Reader(references & variables.FACTS)
        self._quiet: dict[tuple[Any, ...], PolicyDecision] = {}

    def decide(self, situation: Situation, body: Body) -> PolicyDecision:
        """Evaluate all policies on a whole request."""
        if not self._reads_text and self._is_clean(body):
            return self._without_matches(situation)
        return self._decide(situation, body)

    def _is_clean(self, body: Body) -> bool:
        """Whether one look at the plain texts of a body tells that no detector will find anything in it."""
        if self.scanner is None:
            return True
        texts = content.plain_texts(body)
        try:
            return texts is not None and not self.scanner.maybe("\n".join(texts))
        except Exception:  # noqa: BLE001  # the long way meets the same failure and lets on_error decide
            return False

    def _without_matches(self, situation: Situation) -> PolicyDecision:
        """Decide where nothing was found: by the facts alone, which most calls of a key share, so it is remembered."""
        facts = self._facts.read(situation)
        found = self._quiet.get(facts)
        if found is None:
            observed, _ = self._observe([], 0)
            found = combine(self.verdicts(situation._replace(observed=Observed({}, 0.0, 0)), observed, ""))
            _drop_empty_redaction(found)
            if len(self._quiet) >= _CACHED:
                self._quiet.clear()
            self._quiet[facts] = found
        return PolicyDecision(
            effect=found.effect, policy=found.policy, reason=found.reason, message=found.message,
            route_to=found.route_to, shadows=list(found.shadows),
        )  # fmt: skip

    def _decide(self, situation: Situation, body: Body) -> PolicyDecision:
        slots = list(content.request_texts(body)) if self.scanner is not None or self._reads_text else []
        chars = sum(len(slot.text) for slot in slots)
        failure = ""
        try:
            matches = detect(self.scanner, slots) if self.scanner is not None else []
        except Exception as error:  # noqa: BLE001  # a detector's failure must become a decision: on_error says which
            matches, failure = [], f"a detector failed: {type(error).__name__}"
        observed, counts = self._observe(matches, chars)
        situation = situation._replace(observed=Observed({}, 0.0, chars))
        verdicts = self.verdicts(situation, observed, failure)
        decision = combine(verdicts)
        decision.detections = counts
        if decision.effect != "deny" and matches and self.scanner is not None:
            decision.body = _redacted(verdicts, self.scanner, slots, body)
        _drop_empty_redaction(decision)
        return decision

    def verdicts(self, situation: Situation, observed: dict[str, Observed], failure: str) -> list[Verdict]:
        """Return every policy's verdict; where a detector failed, the policies that need it fail with it."""
        verdicts = self._conditions.ask(situation, observed)
        if not failure:
            return verdicts
        return [
            verdict
            if verdict.policy.lenient.issuperset(verdict.policy.thresholds)
            else verdict._replace(holds=False, error=failure)
            for verdict in verdicts
        ]

    def _observe(self, matches: list[Candidate], chars: int) -> tuple[dict[str, Observed], dict[str, int]]:
        """Return what each policy with detectors saw, and the counts of all classes."""
        if not matches:
            return {p.name: Observed({}, 0.0, chars, p.known) for p in self.policies if p.thresholds}, {}
        observed = {}
        for policy in self.policies:
            if policy.thresholds:
                own = [match for match in matches if policy.wants(match)]
                best = max((match.score for match in own), default=0.0)
                counts = Counter(match.name for match in own)
                observed[policy.name] = Observed(counts, best, chars, policy.known)
        return observed, dict(Counter(match.name for match in matches))


def _drop_empty_redaction(decision: PolicyDecision) -> None:
    """There was nothing to redact, so nothing was done."""
    if decision.effect == "redact" and decision.body is None:
        decision.effect, decision.policy, decision.reason, decision.message = "allow", "", "", ""


def make_scanner(policies: Sequence[CompiledPolicy]) -> Scanner | None:
    """Return one scanner that finds everything any of the policies looks for."""
    least: dict[str, float] = {}
    for policy in policies:
        for name, score in policy.thresholds.items():
            least[name] = min(score, least.get(name, 1.0))
    if not least:
        return None
    words = {word for policy in policies for word in policy.words} if WORD in least else set()
    return Scanner(least, Words(words) if words else None)


def detect(scanner: Scanner, slots: Sequence[Slot]) -> list[Candidate]:
    """Return all matches in the texts of a body. One look at all of them together tells when there is nothing."""
    plain = [slot for slot in slots if not slot.json]
    matches: list[Candidate] = []
    if plain and scanner.maybe("\n".join(slot.text for slot in plain)):
        for slot in plain:
            matches += scanner.candidates(slot.text)
    for slot in slots:
        if slot.json:
            JsonStream(scanner, _collector(matches)).feed(slot.text, final=True)
    return matches


def _collector(matches: list[Candidate]) -> Callable[[Candidate], bool]:
    def judge(match: Candidate) -> bool:
        matches.append(match)
        return False

    return judge


def combine(verdicts: Sequence[Verdict]) -> PolicyDecision:
    """Return the decision of the strongest effect; among equals the higher tier's, then the first by name."""
    decision = PolicyDecision()
    best: tuple[int, tuple[int, str]] | None = None
    for verdict in verdicts:
        if not verdict.holds and not verdict.error:
            continue
        policy, effect = verdict.policy, "deny" if verdict.error else verdict.policy.effect
        if not policy.enforced:
            reason = ERROR_REASON if verdict.error else policy.resource.reason
            decision.shadows.append({"policy": policy.name, "effect": effect, "reason": reason})
            continue
        order = (-_STRENGTH[effect], policy.rank)
        if best is None or order < best:
            best = order
            name_effect(decision, verdict)
    decision.shadows.sort(key=lambda shadow: shadow["policy"])
    return decision


def name_effect(decision: PolicyDecision, verdict: Verdict) -> None:
    """Write into a decision what one policy's verdict means."""
    policy = verdict.policy
    decision.policy = policy.name
    decision.effect = "deny" if verdict.error else policy.effect
    decision.reason = ERROR_REASON if verdict.error else policy.resource.reason
    decision.route_to = None if verdict.error else policy.resource.route_to
    decision.message = policy.resource.message
    if verdict.error:
        decision.message = f"The policy '{policy.name}' could not be evaluated, so the call is refused."


def _redacted(
    verdicts: Sequence[Verdict], scanner: Scanner, slots: Sequence[Slot], body: Body
) -> Body | None:
    """Return the body with what redacting policies want replaced, or ``None`` when that is nothing."""
    redacting = [
        verdict.policy
        for verdict in verdicts
        if verdict.holds and verdict.policy.enforced and verdict.policy.effect == "redact"
    ]
    if not redacting:
        return None

    def judge(match: Candidate) -> bool:
        return any(policy.wants(match) for policy in redacting)

    changes: dict[Path, str] = {}
    for slot in slots:
        if slot.json:
            text = JsonStream(scanner, judge).feed(slot.text, final=True)
        else:
            text = apply(TextStream(scanner, judge).feed(slot.text, final=True), slot.text)[0]
        if text != slot.text:
            changes[slot.path] = text
    return content.rewrite(body, changes) if changes else None


def describe(policy: CompiledPolicy) -> dict[str, Any]:
    """Return what a policy is, in a few words, for explanations."""
    resource = policy.resource
    return {
        "policy": policy.name,
        "tier": resource.tier,
        "mode": resource.mode,
        "stages": list(resource.stages),
        "effect": resource.effect,
        "reason": resource.reason,
        "when": resource.when,
    }
