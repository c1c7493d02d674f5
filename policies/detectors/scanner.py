"""All detectors behind one prefilter: what is in a text, and how much of a growing text is decided.

The meaning, the same for a whole text and for a stream of it:

- Every recogniser reports *candidates* from the raw text alone. Whether, where and how far a candidate begins depends
  only on ``LOOK_BACK`` characters before and ``LOOK_AHEAD`` after its start (an *open* candidate, a key or a private key
  block, goes on as long as its run of characters does).
- Of overlapping candidates the leftmost counts, then the longest, then the surest. The rest are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from policies.detectors import email, iban, numbers, secrets
from policies.detectors import prefilter as hs
from policies.detectors.characters import DIGITS, NUMBER_RUN, run_start
from policies.detectors.spans import (
    CARD,
    EMAIL,
    IBAN,
    LOOK_AHEAD,
    PHONE,
    SECRETS,
    WORD,
    Candidate,
    order,
)
from policies.detectors.words import Words

_NUMBER_START = DIGITS | frozenset("(+")
_NUMBER_LENGTH = 72
_DIGIT_TAIL = 72


class Scanner:
    """The detectors of some classes, each with its least score."""

    __slots__ = ("_cards", "_families", "_phones", "_prefilter", "_runs", "thresholds", "words")

    def __init__(self, thresholds: Mapping[str, float], words: Words | None = None) -> None:
        self.thresholds = dict(thresholds)
        self.words = words if WORD in thresholds else None
        self._cards = CARD in thresholds
        self._phones = PHONE in thresholds
        wanted: set[hs.Family] = set()
        if EMAIL in thresholds:
            wanted.add("email")
        if self._cards or self._phones:
            wanted.add("number")
        if IBAN in thresholds:
            wanted.add("iban")
        if not thresholds.keys().isdisjoint(SECRETS):
            wanted.add("secret")
        self._families = frozenset(wanted)
        self._runs = bool(wanted & {"email", "iban", "secret"})
        self._prefilter = hs.prefilter(self._families) if wanted else None

    def wants(self, match: Candidate) -> bool:
        """Tell whether a match is of a class that is looked for, with enough score."""
        return match.score >= self.thresholds.get(match.name, 2.0)

    def maybe(self, text: str) -> bool:
        """Tell quickly whether there may be anything in ``text`` (which may be several texts joined by line ends)."""
        if self._prefilter is not None and self._prefilter.hits(text):
            return True
        return self.words is not None and next(self.words.find(text), None) is not None

    def candidates(self, text: str, base: int = 0) -> list[Candidate]:
        """Return all candidates with enough score that begin at ``base`` or later, in the order in which they compete."""
        hits = self._prefilter.hits(text) if self._prefilter is not None else []
        if not hits and self.words is None:
            return []
        if base:
            # Every match begins before the hit that led to it.
            hits = [hit for hit in hits if hit[0] > base]
        found = list(self._recognise(text, hits, base)) if hits else []
        if self.words is not None:
            found.extend(self.words.find(text))
        if not found:
            return found
        return sorted({match for match in found if match.start >= base and self.wants(match)}, key=order)

    def _recognise(self, text: str, hits: list[tuple[int, int]], base: int) -> Iterator[Candidate]:
        for end, hit in hits:
            match: Candidate | None = None
            if hit == hs.EMAIL_HIT:
                match = email.find(text, end)
            elif hit >= hs.KEY_HITS:
                kind = secrets.KEYS[hit - hs.KEY_HITS]
                match = secrets.find_key(text, end - secrets.HIT - len(kind.prefix), kind)
            elif hit == hs.VALUE_HIT:
                match = secrets.find_value(text, end - secrets.HIT)
            elif hit == hs.TOKEN_HIT:
                match = secrets.find_token(text, end - secrets.HIT - 3)
            elif hit == hs.URL_HIT:
                match = secrets.find_url_password(text, end - 1)
            elif hit == hs.PRIVATE_KEY_HIT:
                match = secrets.find_private_key(text, end)
            elif hit == hs.IBAN_HIT:
                for length in (11, 12, 13):
                    if (found := iban.find(text, end - length)) is not None:
                        yield found
            if match is not None:
                yield match
        ends = [end for end, hit in hits if hit == hs.NUMBER_HIT]
        if ends:
            yield from numbers.find(text, ends, base, self._cards, self._phones)

    def resolve(self, text: str, base: int = 0) -> list[Candidate]:
        """Return the matches that count, from left to right, none overlapping, none before ``base``."""
        return resolve(text, self.candidates(text, base), base)

    def undecided(self, text: str, base: int) -> int:
        """Return the earliest position from ``base`` on where a match may begin or change when more text comes.

        It may be earlier than necessary, never later. Within a text that ends, everything is decided.
        """
        size = len(text)
        safe = self.words.hold(text, base) if self.words is not None else size
        if self._runs:
            safe = min(safe, run_start(text, base, LOOK_AHEAD))
            if "secret" in self._families:
                header = text.rfind("-----BEGIN", max(base, size - 80))
                if header != -1:
                    safe = min(safe, header)
        if (self._cards or self._phones or "iban" in self._families) and not _NUMBER_START.isdisjoint(
            text[max(base, size - _DIGIT_TAIL) :]
        ):
            safe = min(safe, self._number_hold(text, base))
        return max(safe, base)

    def _number_hold(self, text: str, base: int) -> int:
        size = len(text)
        position, low = size, max(base, size - _NUMBER_LENGTH)
        if self._phones:
            position = _before_word(text, low)
        while position > low and text[position - 1] in NUMBER_RUN:
            position -= 1
        while position < size and text[position] not in _NUMBER_START:
            position += 1
        if "iban" in self._families:
            low = max(base, size - iban.MAX_LENGTH - 1)
            run = size
            while run > low and (
                text[run - 1] in " -" or (text[run - 1].isascii() and text[run - 1].isalnum())
            ):
                run -= 1
            for start in range(run, min(position, size - 3)):
                if (
                    text[start : start + 2].isalpha()
                    and text[start + 2] in DIGITS
                    and text[start + 3] in DIGITS
                ):
                    return min(position, start)
        return position


def _before_word(text: str, low: int) -> int:
    """Return the end of a number that the word at the end of ``text`` may yet make a telephone number; else the end."""
    size = len(text)
    position = size
    while position > low and size - position <= numbers.LONGEST_AFTER and text[position - 1].isalpha():
        position -= 1
    if position > low + 1 and text[position - 1] in " -" and text[position - 2] in DIGITS:
        return position - 1
    return size


def resolve(text: str, candidates: list[Candidate], base: int = 0) -> list[Candidate]:
    """Return which of the ordered ``candidates`` count, from ``base`` on; an open one with the end it really has."""
    accepted: list[Candidate] = []
    for match in candidates:
        if match.start < base:
            continue
        if match.open:
            match = match._replace(end=secrets.extend(text, match)[0])
        accepted.append(match)
        base = match.end
    return accepted
