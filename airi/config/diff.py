"""Differences between two configurations, resource by resource."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from airi.config.state import Key

_CONTEXT_LINES = 3


@dataclass(frozen=True, slots=True)
class ResourceDiff:
    """What happened to one resource; ``before`` and ``after`` are plain data, ``None`` where it was not."""

    kind: str
    name: str
    change: Literal["added", "changed", "removed"]
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def text(self) -> str:
        """Return a unified diff of the YAML."""
        title = f"{self.kind}/{self.name}"
        lines = difflib.unified_diff(
            _lines(self.before), _lines(self.after), title, title, n=_CONTEXT_LINES, lineterm=""
        )
        return "\n".join(lines)


def compare(before: Mapping[Key, dict[str, Any]], after: Mapping[Key, dict[str, Any]]) -> list[ResourceDiff]:
    """Return the differences in order of kind and name."""
    found = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        change: Literal["added", "changed", "removed"] = "changed"
        if old is None or new is None:
            change = "added" if old is None else "removed"
        found.append(ResourceDiff(*key, change, old, new))
    return found


def render(diffs: list[ResourceDiff]) -> str:
    """Return all differences as one text; empty when there are none."""
    return "\n".join(diff.text() for diff in diffs)


def _lines(data: dict[str, Any] | None) -> list[str]:
    return [] if data is None else yaml.safe_dump(data, sort_keys=True, allow_unicode=True).splitlines()
