"""The pieces of the decision timeline, and how a sentence is put into one."""

from __future__ import annotations

from dataclasses import dataclass, field


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


def sentence(text: str) -> str:
    """Return words as a sentence: a capital in front, a full stop behind."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?:" else ".")


def say(passage: Passage, *texts: str) -> None:
    """Add sentences to a passage; empty ones are left out."""
    passage.lines += (line for text in texts if (line := sentence(text)))
