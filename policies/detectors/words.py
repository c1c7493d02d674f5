"""Words that a policy lists, matched without regard to case at word borders (Aho-Corasick: one pass for all)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import ahocorasick_rs

from policies.detectors.spans import WORD, Candidate

MAX_WORDS = 10_000
MAX_WORD = 64
"""Characters a word or phrase may have."""


class Words:
    """A list of words or phrases, compiled."""

    __slots__ = ("_automaton", "_longest", "_prefixes", "words")

    def __init__(self, words: Iterable[str]) -> None:
        """Compile; raise :class:`ValueError` for an empty or overlong word or too many of them."""
        self.words = tuple(sorted({fold(word.strip()) for word in words}))
        if not self.words or not self.words[0] or len(self.words) > MAX_WORDS:
            raise ValueError(f"between 1 and {MAX_WORDS} words, none of them empty, are needed")
        self._longest = max(map(len, self.words))
        if self._longest > MAX_WORD:
            raise ValueError(f"a word may have at most {MAX_WORD} characters")
        self._automaton = ahocorasick_rs.AhoCorasick(self.words, matchkind=ahocorasick_rs.MatchKind.Standard)
        self._prefixes = frozenset(word[:size] for word in self.words for size in range(1, len(word) + 1))

    def find(self, text: str) -> Iterator[Candidate]:
        """Yield every occurrence at word borders, overlapping ones too."""
        folded = fold(text)
        try:
            found = self._automaton.find_matches_as_indexes(folded, overlapping=True)
        except UnicodeEncodeError:  # half of a surrogate pair
            whole = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in folded)
            found = self._automaton.find_matches_as_indexes(whole, overlapping=True)
        for _, start, end in found:
            if not (_joins(text, start - 1, start) or _joins(text, end - 1, end)):
                yield Candidate(start, end, WORD, 1.0, "", folded[start:end])

    def hold(self, text: str, base: int) -> int:
        """Return the earliest position from ``base`` on where a word may begin that the text does not yet decide."""
        tail = max(base, len(text) - self._longest)
        lowered = fold(text[tail:])
        for position in range(len(lowered)):
            if lowered[position:] in self._prefixes:
                return tail + position
        return len(text)


def fold(text: str) -> str:
    """Return ``text`` without its case with every character kept at its position."""
    # casefold looks at each character alone (lower does not: a final sigma), so a chunk folds as the whole does.
    folded = text.casefold()
    if len(folded) == len(text):
        return folded
    return "".join(small if len(small := char.casefold()) == 1 else char for char in text)


def _joins(text: str, left: int, right: int) -> bool:
    """Tell whether the characters at ``left`` and ``right`` belong to one word.

    Scripts without spaces between words (from Thai on) have no borders to look for.
    """
    if left < 0 or right >= len(text):
        return False
    before, after = text[left], text[right]
    return _in_word(before) and _in_word(after) and max(before, after) < "\u0e00"


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"
