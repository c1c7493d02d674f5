"""Name patterns: ``*`` matches any run of characters, everything else stands for itself. Linear in the text."""

from __future__ import annotations

from collections.abc import Iterable


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of ``text`` fits ``pattern``."""
    if "*" not in pattern:
        return pattern == text
    first, *middle, last = pattern.split("*")
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:  # the leftmost place for each part leaves the most room for the next
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def allowed(patterns: Iterable[str], text: str) -> bool:
    """Whether one of the patterns fits; no patterns at all allow nothing."""
    return any(pattern == "*" or matches(pattern, text) for pattern in patterns)


def within(narrow: str, wide: str) -> bool:
    """Whether every text that fits ``narrow`` fits ``wide`` (sound; a few exotic true cases are denied).

    ``narrow`` is read as a text: its ``*`` can then only lie inside what a ``*`` of ``wide`` covers, so whatever
    stands for it is covered too.
    """
    return matches(wide, narrow)
