"""What must go with a text that was redacted: marks that repeat it or count its characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from policies.content import Path

_MARKS = ("annotations", "logprobs")


def void_marks(body: Any, changed: Iterable[Path]) -> None:
    """Empty the annotations and log probabilities beside each changed text of a response's output.

    Only what :func:`policies.content.rewrite` has copied on the way to a changed text is written to.
    """
    for path in changed:
        if path[0] == "choices":
            continue  # a choice's log probabilities stand beside its message
        part = body
        for step in path[:-1]:
            part = part[step]
        for mark in _MARKS:
            if isinstance(part, dict) and part.get(mark):
                part[mark] = []
