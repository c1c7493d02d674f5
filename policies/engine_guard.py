"""The response stage: policies over an answer, whole or as it streams.

A redacting policy is asked match by match, as if that match were all there is, so its decision does not depend on how
the answer was cut into chunks or on what comes later. A denying policy is asked whenever something new was found, before
anything of it is released: what was released before stays released, the rest never leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from airi.expressions import EvaluationError
from policies import content, variables
from policies.content import Body, Path, Slot
from policies.detectors import Candidate, Scanner
from policies.documents import CompiledPolicy
from policies.engine_events import EventWriter
from policies.engine_stream import ChunkWriter
from policies.engine_types import PolicyDecision
from policies.errors import PolicyDeniedError
from policies.redaction import JsonStream, TextStream
from policies.redaction.text import apply
from policies.rewriting import void_marks
from policies.variables import Observed, Reader, Situation

_CACHED = 1_024


class ResponseGuard:
    """Watches one answer. ``decision`` says at any time what was decided so far."""

    def __init__(
        self, policies: Sequence[CompiledPolicy], scanner: Scanner | None, situation: Situation, stream: bool
    ) -> None:
        self.decision = PolicyDecision()
        self._situation = situation
        self._scanner = scanner
        self._redacting = [policy for policy in policies if policy.effect == "redact"]
        self._judging = [policy for policy in policies if policy.effect != "redact"]
        self._seen: Counter[str] = Counter()
        self._own: dict[str, tuple[Counter[str], float]] = {
            policy.name: (Counter(), 0.0) for policy in self._judging if policy.thresholds
        }
        self._answers: dict[tuple[str, str, float, str], bool] = {}
        self._chars = 0
        self._reported: set[str] = set()
        self._counts_text = any(policy.program.references & variables.TEXT for policy in self._judging)
        self._asked = False
        self._events: EventWriter | None = None
        redacts = any(policy.enforced for policy in self._redacting)
        self._writer = (
            ChunkWriter(scanner, self._judge, blank_logprobs=redacts) if stream and scanner else None
        )

    def whole(self, body: Body) -> Body:
        """Return the answer as the caller may see it; raise :class:`PolicyDeniedError`."""
        self._start()
        changes: dict[Path, str] = {}
        changed_choices: set[int] = set()
        for _, slot in content.response_texts(body):
            text = self._redacted(slot)
            if text != slot.text:
                changes[slot.path] = text
                if slot.path[0] == "choices":
                    changed_choices.add(int(slot.path[1]))
            self._chars += len(slot.text)
        if self._counts_text:
            self._ask_all()
        if not changes:
            return body
        rewritten = content.rewrite(body, changes)
        for position in changed_choices:
            _blank_logprobs(rewritten, position)
        void_marks(rewritten, changes)
        return rewritten

    def feed(self, chunk: Body) -> list[Body]:
        """Return the chunks that may be sent now; raise :class:`PolicyDeniedError` when the stream must end here."""
        self._start()
        if self._counts_text:
            self._chars += _chunk_chars(chunk)
            self._ask_all()
        return [chunk] if self._writer is None else self._writer.feed(chunk)

    def feed_event(self, event: Body) -> list[Body]:
        """Return the events of a Responses stream that may be sent now; as :meth:`feed` for chat chunks."""
        self._start()
        if self._counts_text:
            piece = event.get("delta")
            self._chars += len(piece) if isinstance(piece, str) else 0
            self._ask_all()
        if self._scanner is None:
            return [event]
        if self._events is None:
            self._events = EventWriter(
                self._scanner, self._judge, self._redacted,
                blank_logprobs=any(policy.enforced for policy in self._redacting),
            )  # fmt: skip
        return self._events.feed(event)

    def finish(self) -> list[Body]:
        """Return what was still held back, when the upstream's stream has ended."""
        return [] if self._writer is None else self._writer.finish()

    def _start(self) -> None:
        """Ask once what does not depend on the answer's text."""
        if not self._asked:
            self._asked = True
            self._ask_all()

    def _redacted(self, slot: Slot) -> str:
        if self._scanner is None:
            return slot.text
        if slot.json:
            return JsonStream(self._scanner, self._judge).feed(slot.text, final=True)
        return apply(TextStream(self._scanner, self._judge).feed(slot.text, final=True), slot.text)[0]

    def _judge(self, match: Candidate) -> bool:
        """Count a match, let denying policies speak, and tell whether to replace it."""
        self._seen[match.name] += 1
        self.decision.detections = dict(self._seen)
        concerned = False
        for policy in self._judging:
            if policy.name in self._own and policy.wants(match):
                counts, best = self._own[policy.name]
                counts[match.name] += 1
                self._own[policy.name] = counts, max(best, match.score)
                concerned = True
        if concerned:
            self._ask_all()
        replaced = False
        for policy in self._redacting:  # each is asked: shadows report too
            replaced = self._replaces(policy, match) or replaced
        return replaced

    def _replaces(self, policy: CompiledPolicy, match: Candidate) -> bool:
        if not policy.wants(match):
            return False
        key = (policy.name, match.name, match.score, match.word)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= _CACHED:
                self._answers.clear()
            answer = self._answers[key] = self._holds(
                policy, Observed({match.name: 1}, match.score, 0, policy.known)
            )
        if answer and policy.enforced and self.decision.effect == "allow":
            self._decide(policy, "redact", policy.resource.reason)
        return answer and policy.enforced

    def _ask_all(self) -> None:
        for policy in self._judging:
            counts, best = self._own.get(policy.name, (Counter(), 0.0))
            if not self._holds(policy, Observed(counts, best, self._chars, policy.known)):
                continue
            if policy.effect == "deny" and policy.enforced:
                self._deny(policy, policy.resource.reason)
            elif policy.effect == "allow" and policy.enforced and not self.decision.policy:
                self._decide(policy, "allow", policy.resource.reason)

    def _holds(self, policy: CompiledPolicy, observed: Observed) -> bool:
        """Ask a condition; a shadow's answer is noted, an enforced policy's error denies."""
        holds = True
        if not policy.always:
            situation = self._situation._replace(observed=observed)
            try:
                reader = Reader(policy.program.references)
                holds = policy.program.evaluate_in(reader.activation(reader.read(situation))) is True
            except EvaluationError:
                if policy.enforced:
                    self._deny(policy, "POLICY_ERROR")
                self._shadow(policy, "deny", "POLICY_ERROR")
                return False
        if holds and not policy.enforced:
            self._shadow(policy, policy.effect, policy.resource.reason)
        return holds

    def _shadow(self, policy: CompiledPolicy, effect: str, reason: str) -> None:
        if policy.name not in self._reported:
            self._reported.add(policy.name)
            self.decision.shadows.append({"policy": policy.name, "effect": effect, "reason": reason})

    def _deny(self, policy: CompiledPolicy, reason: str) -> None:
        self._decide(policy, "deny", reason)
        raise PolicyDeniedError(self.decision)

    def _decide(self, policy: CompiledPolicy, effect: str, reason: str) -> None:
        decision = self.decision
        decision.effect, decision.policy, decision.reason = effect, policy.name, reason
        decision.message = policy.resource.message


def _blank_logprobs(body: Body, position: int) -> None:
    """Remove the log probabilities of a redacted choice: their tokens repeat its text."""
    choices: list[Any] = body["choices"]
    if choices[position].get("logprobs") is not None:
        choices[position] = {**choices[position], "logprobs": None}


def _chunk_chars(chunk: Body) -> int:
    choices = chunk.get("choices")
    chars = 0
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            delta = choice.get("delta")
            slots = content.message_texts(delta, ()) if isinstance(delta, dict) else ()
            chars += sum(len(slot.text) for slot in slots)
            chars += len(choice["text"]) if isinstance(choice.get("text"), str) else 0
    return chars
