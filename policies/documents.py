"""Policy resources made ready to be evaluated, and everything that can be wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from airi import expressions
from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from airi.expressions import ExpressionError, Program
from airi.pace import Pace
from policies import variables
from policies.detectors import DETECTORS, Candidate, Words
from policies.detectors.spans import WORD
from policies.detectors.words import fold
from policies.errors import PolicyInputError

TIERS = ("platform", "org", "team", "key")
_MAX_CONDITIONS = 8_192
Place = Callable[..., str]
"""Names a key of the resource in a complaint: ``place("when")``; see :class:`airi.config.positions.Where`."""


@dataclass(frozen=True)
class CompiledPolicy:
    """One policy, ready. ``thresholds``: the classes its detectors report and the least score of each."""

    resource: Policy
    program: Program
    thresholds: dict[str, float]
    words: tuple[str, ...] = ()
    lenient: frozenset[str] = field(default_factory=frozenset)
    """Classes whose detector may fail without consequence (``on_error: allow``)."""

    @property
    def name(self) -> str:
        """The resource's name."""
        return self.resource.metadata.name

    @property
    def effect(self) -> str:
        """What it does when its condition holds."""
        return self.resource.effect

    @property
    def enforced(self) -> bool:
        """Whether its effect is applied (mode ``enforce``) or only reported (``shadow``)."""
        return self.resource.mode == "enforce"

    @cached_property
    def rank(self) -> tuple[int, str]:
        """Order among policies of the same effect: the higher tier first, then by name."""
        return TIERS.index(self.resource.tier), self.name

    @cached_property
    def tenants(self) -> frozenset[str] | None:
        """The tenants that it is for, or ``None`` when it is for all, or for those of a pattern."""
        named = self.resource.scope.tenants
        return frozenset(named) if named and not any("*" in name for name in named) else None

    @cached_property
    def word_set(self) -> frozenset[str]:
        """The listed words as they are compared."""
        return frozenset(map(fold, self.words))

    @cached_property
    def known(self) -> tuple[str, ...]:
        """The classes that its detectors report."""
        return tuple(sorted(self.thresholds))

    @cached_property
    def always(self) -> bool:
        """Whether the condition is the constant ``true``."""
        return self.program.constant and self.resource.when.strip() == "true"

    def wants(self, match: Candidate) -> bool:
        """Tell whether a match is of this policy's detectors."""
        if match.score < self.thresholds.get(match.name, 2.0):
            return False
        return match.name != WORD or match.word in self.word_set

    def covers(self, tenant: str, team: str, key_id: str, model: str) -> bool:
        """Tell whether the policy's scope holds a call of these."""
        scope = self.resource.scope
        return (
            _any(scope.tenants, tenant)
            and _any(scope.models, model)
            and _any(scope.teams, team)
            and _any(scope.keys, key_id)
        )


def compile_policy(resource: Policy) -> CompiledPolicy:
    """Compile one policy; raise :class:`PolicyInputError` with all its problems, one a line."""
    problems = policy_problems(resource)
    if problems:
        raise PolicyInputError("\n".join(problems))
    return CompiledPolicy(
        resource,
        condition(resource.when),
        _thresholds(resource),
        tuple(word for use in resource.detectors for word in use.words),
        frozenset(
            name for use in resource.detectors if use.on_error == "allow" for name in DETECTORS[use.id]
        ),
    )


@lru_cache(maxsize=_MAX_CONDITIONS)
def condition(text: str) -> Program:
    """Compile a condition, or return it as it was compiled before: many policies say the same, in every snapshot again."""
    return expressions.compile(text, variables.DECLARATIONS, expect="bool")


def compile_policies(
    document: ConfigDocument, known: Iterable[CompiledPolicy] = (), pace: Pace | None = None
) -> list[CompiledPolicy]:
    """Compile all policies of a document that are not switched off, in order of rank.

    What is ``known`` of an earlier document is taken over where the resource is the same. ``pace`` is kept between two
    policies: half a millisecond each, which other threads cannot interrupt.
    """
    before = {policy.name: policy for policy in known}
    compiled = []
    for resource in document.all(Policy):
        if resource.mode == "off":
            continue
        found = before.get(resource.metadata.name)
        if found is None or (found.resource is not resource and found.resource != resource):
            found = compile_policy(resource)
            if pace is not None:
                pace()
        compiled.append(found)
    return sorted(compiled, key=lambda policy: policy.rank)


def policy_problems(resource: Policy, where: Place | None = None) -> list[str]:
    """Return everything that is wrong with a policy, as lines that name the key (and, with ``where``, file and line)."""
    place = where or (lambda *path: ": ".join([f"Policy/{resource.metadata.name}", ".".join(map(str, path))]))
    problems = [f"{place(*path)}: {what}" for path, what in _detector_problems(resource)]
    try:
        program = condition(resource.when)
    except ExpressionError as error:
        return [*problems, f"{place('when')}: {error.message}"]
    problems += [f"{place(*path)}: {what}" for path, what in _effect_problems(resource, program.references)]
    return problems + [f"{place(*path)}: {what}" for path, what in _test_problems(resource)]


Problem = tuple[tuple[str | int, ...], str]


def _detector_problems(resource: Policy) -> Iterator[Problem]:
    for index, use in enumerate(resource.detectors):
        path = ("detectors", index, "words")
        if use.id != "words":
            if use.words:
                yield path, f"only the detector 'words' takes words, not {use.id!r}"
            continue
        try:
            Words(use.words)
        except ValueError as error:
            yield path, str(error)


def _effect_problems(resource: Policy, references: frozenset[str]) -> Iterator[Problem]:
    reads_data = sorted(references & variables.DATA)
    if reads_data and not resource.detectors:
        yield (
            ("when",),
            f"reads {', '.join(reads_data)}, but the policy lists no detectors that could fill it",
        )
    if resource.effect == "redact" and not resource.detectors:
        yield ("detectors",), "effect 'redact' needs detectors that say what to redact"
    if "response" not in resource.stages:
        return
    if resource.effect == "route":
        yield (
            ("stages",),
            "effect 'route' is only possible in the stage 'prompt'; an answer has been routed already",
        )
    reads_text = sorted(references & variables.TEXT)
    if resource.effect == "redact" and reads_text:
        yield (
            ("when",),
            f"reads {', '.join(reads_text)}; in the stage 'response' a redaction is decided match by match, "
            "before the length of the answer is known",
        )


_INPUT = {
    "stage", "tenant", "team", "key", "user", "role", "model", "call", "text", "body", "response", "route",
}  # fmt: skip
_EXPECT = {"effect", "reason", "route_to", "text", "detections", "body"}


def _test_problems(resource: Policy) -> Iterator[Problem]:
    for index, test in enumerate(resource.tests):
        for key in sorted(test.input.keys() - _INPUT):
            yield ("tests", index, "input", key), f"unknown; known are {', '.join(sorted(_INPUT))}"
        for key in sorted(test.expect.keys() - _EXPECT):
            yield ("tests", index, "expect", key), f"unknown; known are {', '.join(sorted(_EXPECT))}"


def _thresholds(resource: Policy) -> dict[str, float]:
    least: dict[str, float] = {}
    for use in resource.detectors:
        for name in DETECTORS[use.id]:
            least[name] = min(use.min_score, least.get(name, 1.0))
    return least


def _any(patterns: Sequence[str], name: str) -> bool:
    """Tell whether one of the patterns fits; an empty list fits everything."""
    return not patterns or any(matches(pattern, name) for pattern in patterns)


def matches(pattern: str, name: str) -> bool:
    """Tell whether ``name`` fits ``pattern``, in which ``*`` stands for any run of characters."""
    if "*" not in pattern:
        return pattern == name
    parts = pattern.split("*")
    if not name.startswith(parts[0]):
        return False
    position = len(parts[0])
    for part in parts[1:-1]:
        found = name.find(part, position)
        if found == -1:
            return False
        position = found + len(part)
    return name.endswith(parts[-1]) and len(name) - len(parts[-1]) >= position
