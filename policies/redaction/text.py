"""Redaction of one text, whole or as it grows. Both are the same code: a whole text is a stream of one piece.

``feed`` returns *operations* on the characters fed so far: keep the next n, or put a label in place of the next n. What
is not decided yet (see :meth:`policies.detectors.Scanner.undecided`) is held back; nothing is held longer than
``LOOK_AHEAD`` characters. A match of unbounded length is replaced at once and the rest of its run swallowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from policies.detectors import Candidate, Scanner, secrets
from policies.detectors.spans import LABELS, LOOK_AHEAD, LOOK_BACK


class Operation(NamedTuple):
    """Keep the next ``size`` characters of the input (``label`` empty), or put the label in their place."""

    size: int
    label: str = ""


SWALLOWED = "\0"
"""The label of characters that belong to a match whose label was already put out."""


Judge = Callable[[Candidate], bool]
"""Told of each candidate once, in order, before anything of it is released; says whether to replace it.

It must answer alike for alike candidates; it may raise to stop the stream.
"""


class TextStream:
    """One growing text: a field of one choice. ``before`` is context that stands in front of it (a key's name)."""

    __slots__ = ("_base", "_judge", "_kept", "_run", "_scanner", "_text")

    def __init__(self, scanner: Scanner, judge: Judge, before: str = "") -> None:
        self._scanner = scanner
        self._judge = judge
        self._text = before[-LOOK_BACK:]
        self._base = len(self._text)
        """Characters of ``_text`` that were dealt with and serve as context only."""
        self._run = ""
        """The run that is being swallowed, if any."""
        self._kept = 0
        """Swallowed characters at the end of ``_text`` that are needed to find a block's footer."""

    @property
    def held(self) -> int:
        """Characters fed and not yet dealt with."""
        return len(self._text) - self._base

    def feed(self, piece: str, final: bool = False) -> list[Operation]:
        """Take the next piece; ``final``: it is the last, so everything is decided."""
        self._text += piece
        operations: list[Operation] = []
        if self._run and not self._swallow(final, operations):
            return operations
        if len(self._text) > self._base:
            self._release(final, operations)
        self._forget()
        return operations

    def _swallow(self, final: bool, operations: list[Operation]) -> bool:
        """Drop what belongs to the match being swallowed; tell whether it has ended."""
        text, start = self._text, self._base - self._kept
        end, done = secrets.swallow(text, start, self._run)
        if end > self._base:
            operations.append(Operation(end - self._base, SWALLOWED))
        done = done or final
        self._kept = 0 if done else min(end - start, secrets.FOOTER_LENGTH)
        self._base = max(end, self._base)
        if done:
            self._run = ""
        else:
            self._text = text[self._base - LOOK_BACK :] if self._base > LOOK_BACK else text
            self._base = len(self._text)
        return done

    def _release(self, final: bool, operations: list[Operation]) -> None:
        text, size = self._text, len(self._text)
        candidates = self._scanner.candidates(text, self._base)
        safe = size if final else self._scanner.undecided(text, self._base)
        if not candidates:
            self._keep(safe, operations)
            return
        for match in candidates:
            # A match at the very end may go on, whatever it is.
            if (
                match.end == size
                and not final
                and self._base <= match.start < safe
                and size - match.start < LOOK_AHEAD
            ):
                safe = match.start
        self._replace(candidates, safe, final, operations)

    def _replace(
        self, candidates: list[Candidate], safe: int, final: bool, operations: list[Operation]
    ) -> None:
        text = self._text
        for match in candidates:
            if match.start < self._base or match.start >= safe or not self._judge(match):
                continue
            self._keep(match.start, operations)
            end, done = secrets.extend(text, match) if match.open else (match.end, True)
            operations.append(Operation(end - match.start, LABELS[match.name]))
            self._base = end
            if not done and not final:
                self._run = match.open
                self._kept = min(end - match.start, secrets.FOOTER_LENGTH)
                return
        self._keep(safe, operations)

    def _keep(self, end: int, operations: list[Operation]) -> None:
        if end > self._base:
            operations.append(Operation(end - self._base))
            self._base = end

    def _forget(self) -> None:
        if self._base > 2 * LOOK_BACK:
            cut = self._base - LOOK_BACK
            self._text = self._text[cut:]
            self._base -= cut


def apply(operations: list[Operation], held: str) -> tuple[str, str]:
    """Apply operations to ``held`` (what was fed and not yet dealt with); return (text released, what stays held)."""
    if len(operations) == 1 and not operations[0].label:
        size = operations[0].size
        return held[:size], held[size:]
    released: list[str] = []
    position = 0
    for count, label in operations:
        if not label:
            released.append(held[position : position + count])
        elif label != SWALLOWED:
            released.append(label)
        position += count
    return "".join(released), held[position:]
