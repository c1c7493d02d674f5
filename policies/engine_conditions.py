"""Asking many policies' conditions at once.

One evaluation costs about 4 µs whatever it evaluates, so the conditions of policies that see the same values are joined
into one expression whose bits say which of them hold. If any of them fails, each is asked alone, to learn which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from airi import expressions
from airi.expressions import EvaluationError, ExpressionError, Program
from policies import variables
from policies.documents import CompiledPolicy
from policies.variables import DECLARATIONS, Observed, Reader, Situation

_JOINED = 12
_MAX_JOINED = 1_024
_REMEMBERED = 1_024
_MAX_LENGTH = 3_000


class Verdict(NamedTuple):
    """What one policy's condition gave: ``holds``, or ``error`` when it has no value."""

    policy: CompiledPolicy
    holds: bool
    error: str = ""


class Conditions:
    """The conditions of some policies."""

    __slots__ = ("_always", "_bundles")

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self._always = [Verdict(policy, True) for policy in policies if policy.always]
        self._bundles = list(_bundles([policy for policy in policies if not policy.always]))

    def ask(self, situation: Situation, observed: Mapping[str, Observed]) -> list[Verdict]:
        """Return a verdict for each policy; ``observed`` says by policy name what its own detectors saw."""
        verdicts = list(self._always)
        for bundle in self._bundles:
            seen = observed.get(bundle.policies[0].name)
            verdicts += bundle.ask(situation if seen is None else situation._replace(observed=seen))
        return verdicts


class _Bundle:
    """Policies that see the same values. Answers are remembered by value: most calls of a key look alike."""

    __slots__ = ("_joined", "_reader", "_remembered", "_remembers", "policies")

    def __init__(self, policies: Sequence[CompiledPolicy]) -> None:
        self.policies = tuple(policies)
        names = frozenset(name for policy in policies for name in policy.program.references)
        self._reader = Reader(names)
        self._joined = _join(policies)
        self._remembers = not names & variables.TEXT  # lengths hardly ever repeat
        self._remembered: dict[tuple[Any, ...], tuple[Verdict, ...]] = {}

    def ask(self, situation: Situation) -> tuple[Verdict, ...]:
        values = self._reader.read(situation)
        found = self._remembered.get(values)
        if found is None:
            found = tuple(self._ask(self._reader.activation(values)))
            if self._remembers:
                if len(self._remembered) >= _REMEMBERED:
                    self._remembered.clear()
                self._remembered[values] = found
        return found

    def _ask(self, activation: Any) -> Iterator[Verdict]:
        if self._joined is not None:
            try:
                bits = self._joined.evaluate_in(activation)
            except EvaluationError:
                pass  # one of them; each is asked alone below
            else:
                for index, policy in enumerate(self.policies):
                    yield Verdict(policy, bool(bits >> index & 1))
                return
        for policy in self.policies:
            yield _ask_one(policy, activation)


def _ask_one(policy: CompiledPolicy, activation: Any) -> Verdict:
    try:
        return Verdict(policy, policy.program.evaluate_in(activation) is True)
    except EvaluationError as error:
        return Verdict(policy, False, error.message)


def _bundles(policies: Sequence[CompiledPolicy]) -> Iterator[_Bundle]:
    """Group policies that see the same values: those without detectors, and those whose detectors are the same.

    Policies of single tenants are kept apart from those of all, so that a thousand tenants with a rule of their own share
    what is compiled for the rest.
    """
    groups: dict[object, list[CompiledPolicy]] = {}
    for policy in policies:
        reads_data = bool(policy.program.references & variables.DATA)
        seen = (tuple(sorted(policy.thresholds.items())), policy.word_set) if reads_data else None
        groups.setdefault((seen, policy.tenants is None), []).append(policy)
    for group in groups.values():
        for start in range(0, len(group), _JOINED):
            yield _Bundle(group[start : start + _JOINED])


def _join(policies: Sequence[CompiledPolicy]) -> Program | None:
    if len(policies) < 2:
        return None
    text = " + ".join(
        f"(({policy.resource.when}) ? {1 << index} : 0)" for index, policy in enumerate(policies)
    )
    return _compile_joined(text) if len(text) <= _MAX_LENGTH else None


@lru_cache(maxsize=_MAX_JOINED)
def _compile_joined(text: str) -> Program | None:
    try:
        return expressions.compile(text, DECLARATIONS)
    except ExpressionError:  # together too deep; they are asked one by one
        return None
