"""The variables of a policy's condition, with their types and where their values come from (docs/policies.md)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from airi.expressions import Declarations
from policies.engine_types import CallFacts

_BYTES_A_TOKEN = 4


class Observed(NamedTuple):
    """What was seen of a call's texts: matches by class, the best score among them, characters in all.

    ``known`` are the classes that were looked for: ``data.counts`` has a number for each, 0 too.
    """

    counts: Mapping[str, int]
    max_score: float
    chars: int
    known: tuple[str, ...] = ()


NOTHING = Observed({}, 0.0, 0)


class Situation(NamedTuple):
    """Everything a condition may ask about."""

    stage: str
    route: str
    facts: CallFacts
    observed: Observed


def _all_counts(observed: Observed) -> tuple[tuple[str, int], ...]:
    return tuple(sorted({**dict.fromkeys(observed.known, 0), **observed.counts}.items()))


_Getter = Callable[[Situation], Any]

_VARIABLES: dict[str, tuple[str, _Getter]] = {
    "stage": ("string", lambda s: s.stage),
    "tenant": ("string", lambda s: s.facts.tenant),
    "team": ("string", lambda s: s.facts.team),
    "key": ("string", lambda s: s.facts.key_id),
    "user": ("string", lambda s: s.facts.user),
    "role": ("string", lambda s: s.facts.role),
    "model.alias": ("string", lambda s: s.facts.model),
    "model.region": ("string", lambda s: s.facts.region),
    "model.simulated": ("bool", lambda s: s.facts.simulated),
    "call.route": ("string", lambda s: s.route),
    "call.stream": ("bool", lambda s: s.facts.stream),
    "call.n": ("int", lambda s: s.facts.n),
    "call.max_tokens": ("int", lambda s: s.facts.max_tokens),
    "call.tags": ("list(string)", lambda s: tuple(s.facts.tags)),
    "call.tools": ("list(string)", lambda s: tuple(s.facts.tools)),
    "data.classes": ("list(string)", lambda s: tuple(sorted(s.observed.counts))),
    "data.counts": ("map(string,int)", lambda s: _all_counts(s.observed)),
    "data.max_score": ("double", lambda s: s.observed.max_score),
    "text.chars": ("int", lambda s: s.observed.chars),
    "text.tokens": ("int", lambda s: -(-s.observed.chars // _BYTES_A_TOKEN)),
    "time.hour": ("int", lambda s: time.gmtime().tm_hour),
    "time.weekday": ("int", lambda s: time.gmtime().tm_wday + 1),
}

TYPES = {name: kind for name, (kind, _) in _VARIABLES.items()}
DECLARATIONS = Declarations(TYPES)
DATA = frozenset(name for name in TYPES if name.startswith("data."))
TEXT = frozenset(name for name in TYPES if name.startswith("text."))
FACTS = frozenset(TYPES) - DATA - TEXT
"""Variables that are known before any text is looked at."""


_PLAIN: dict[str, Callable[[Any], Any]] = {"list(string)": list, "map(string,int)": dict}


class Reader:
    """Reads some variables of a situation."""

    __slots__ = ("_getters", "_kinds", "names")

    def __init__(self, names: frozenset[str]) -> None:
        self.names = tuple(sorted(names))
        self._getters = tuple(_VARIABLES[name][1] for name in self.names)
        self._kinds = tuple(_PLAIN.get(TYPES[name]) for name in self.names)

    def read(self, situation: Situation) -> tuple[Any, ...]:
        """Return the values as one hashable tuple."""
        return tuple([getter(situation) for getter in self._getters])

    def activation(self, values: tuple[Any, ...]) -> Any:
        """Return what :meth:`read` returned, ready for expressions."""
        parts = zip(self.names, values, self._kinds, strict=True)
        return DECLARATIONS.activation({name: kind(value) if kind else value for name, value, kind in parts})
