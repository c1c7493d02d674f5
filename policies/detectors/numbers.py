"""Written numbers: payment cards (issuer prefix, length, Luhn) and telephone numbers (shape, context).

A written number is a sequence of groups of digits with at most three gap characters between them. A candidate begins
and ends with a group, so what stands around a match is looked at only a few characters far.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from policies.detectors.characters import DIGITS, NORMAL, NUMBER_GAP
from policies.detectors.phones import phone_score
from policies.detectors.spans import CARD, PHONE, Candidate

# One character class and a plus: a single pass however the text looks.
_GROUPS = re.compile("[0-9]+")
_WINDOW_BEFORE, _WINDOW_AFTER = 72, 72
_MAX_GROUPS = 9
_CONTEXT = 48
_JOINS = frozenset(" .-/,:")
_CARD_WORDS = frozenset(
    [
        "card",
        "cards",
        "credit",
        "debit",
        "visa",
        "mastercard",
        "amex",
        "maestro",
        "discover",
        "cc",
        "pan",
        "karte",
        "kreditkarte",
        "carte",
        "tarjeta",
    ]
)
_CARD_SHAPES = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2), (4, 4, 4, 4, 3)}


class Groups(NamedTuple):
    """Groups of digits in a window of a text, with what stands between them (typographic dashes made plain)."""

    text: str
    spans: list[tuple[int, int]]

    def gap(self, index: int) -> str:
        """Return what stands between group ``index`` and the next."""
        return _plain(self.text[self.spans[index][1] : self.spans[index + 1][0]])


def _plain(text: str) -> str:
    return text if text.isascii() else text.translate(NORMAL)


def find(text: str, ends: Sequence[int], base: int, cards: bool, phones: bool) -> Iterator[Candidate]:
    """Yield the numbers from ``base`` on near ``ends``, ascending positions where a group closes seven digits or more."""
    for start, end in _windows(ends, base, len(text)):
        groups = Groups(text, [match.span() for match in _GROUPS.finditer(text, start, end)])
        for index, (begin, stop) in enumerate(groups.spans):
            before, gap = text[begin - 2 : begin - 1] if begin > 1 else "", text[begin - 1 : begin]
            if gap in DIGITS:
                continue  # the window cut a long group
            if cards and (stop - begin == 4 or stop - begin >= 12) and (card := _card(groups, index)):
                yield card
            # Most groups of a table follow another one; those cannot begin a telephone number.
            if phones and not (before in DIGITS and gap in _JOINS) and (phone := _phone(groups, index)):
                yield phone


def find_bare(digits: str) -> Candidate | None:
    """Return the card number that a JSON number is, or ``None`` (no context, so no telephone number)."""
    return _card(Groups(digits, [(0, len(digits))]), 0) if digits.isascii() and digits.isdigit() else None


def _windows(ends: Sequence[int], base: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the regions around ``ends`` in which a match could lie, merged where they touch."""
    start = stop = -1
    for end in ends:
        if end > stop:
            low = max(base, end - _WINDOW_BEFORE)
            if stop == -1:
                start = low
            elif low > stop:
                yield start, stop
                start = low
        stop = min(size, end + _WINDOW_AFTER)
    if stop != -1:
        yield start, stop


def context(text: str, start: int) -> set[str]:
    """Return the words, in lower case, that stand within 48 characters before ``start``."""
    before = text[max(0, start - _CONTEXT) : start].lower()
    return set("".join(char if char.isalpha() else " " for char in before).split())


def _card(groups: Groups, index: int) -> Candidate | None:
    text, spans = groups
    start, end = spans[index]
    size = end - start
    if (size != 4 and not 12 <= size <= 19) or not _may_begin(text, start):
        return None
    last = index
    if size == 4:
        found = _card_groups(groups, index)
        if found is None:
            return None
        last = found
    end = spans[last][1]
    if end < len(text) and (text[end].isalnum() or text[end] == "_"):
        return None
    digits = "".join(text[begin:stop] for begin, stop in spans[index : last + 1])
    if not _luhn(digits):
        return None
    score = _issuer_score(digits)
    if score < 0.9 and context(text, start) & _CARD_WORDS:
        score = 0.9 if score else 0.6  # issuers use numbers outside the known ranges too
    return Candidate(start, end, CARD, score) if score else None


def _card_groups(groups: Groups, index: int) -> int | None:
    """Return the last group of a card written in the usual groups with one kind of gap; the longest valid one."""
    text, spans = groups
    gap = groups.gap(index) if index + 1 < len(spans) else ""
    if gap not in (" ", "-", "."):
        return None
    best = None
    shape: tuple[int, ...] = ()
    digits = ""
    for position in range(index, min(index + 5, len(spans))):
        begin, stop = spans[position]
        if position > index and groups.gap(position - 1) != gap:
            break
        shape += (stop - begin,)
        digits += text[begin:stop]
        if shape in _CARD_SHAPES and _issuer_score(digits) and _luhn(digits):
            best = position
    return best


def _may_begin(text: str, start: int) -> bool:
    """Tell whether a number may begin here: not inside a word, not as the fraction of a decimal."""
    if not start:
        return True
    before = text[start - 1]
    if before.isalnum() or before == "_":
        return False
    return not (before in ".," and start > 1 and text[start - 2].isdigit())


def _issuer_score(digits: str) -> float:
    """Return how sure a number of this beginning and length is a card (0: none); ISO/IEC 7812 ranges in use."""
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if two in (34, 37):
        return 0.9 if size == 15 else 0.0
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return 0.9 if size == 16 else 0.0
    if digits[0] == "4":
        return {16: 0.9, 19: 0.8, 13: 0.6}.get(size, 0.0)
    if four == 6011 or two == 65 or 644 <= three <= 649 or 3528 <= four <= 3589 or two == 62:
        return 0.9 if size == 16 else 0.6 if 16 < size <= 19 else 0.0
    if 300 <= three <= 305 or four == 3095 or two in (36, 38, 39):
        return 0.7 if size in (14, 16) else 0.0
    if four in (2131, 1800):
        return 0.7 if size == 15 else 0.0
    if two in (50, 56, 57, 58, 63, 67):
        return 0.45 if 12 <= size <= 19 else 0.0
    return 0.0


def _luhn(digits: str) -> bool:
    total = 0
    for position, char in enumerate(reversed(digits)):
        value = ord(char) - 48
        if position % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def _phone(groups: Groups, index: int) -> Candidate | None:
    text, spans = groups
    start = spans[index][0]
    plus = start
    while plus > 0 and start - plus < 2 and text[plus - 1] in "(+":
        plus -= 1
    international = "+" in text[plus:start]
    if plus and (text[plus - 1].isalnum() or text[plus - 1] in "_+"):
        return None
    if not international and _continues(text, plus):
        return None
    last, sizes, gaps = _written(groups, index, 15 if international else 13)
    found = phone_score(text[start : spans[index][1]], sizes, gaps, international, text[plus:start])
    if found is None:
        return None
    used, score, needs_context = found
    if used < len(sizes) and not international:
        return None
    last = index + used - 1
    end = _extension(text, spans[last][1])
    if end < len(text) and (text[end].isalnum() or text[end] == "_"):
        return None
    if not international and _continues_after(text, end):
        return None
    if needs_context:
        score = 0.7 if context(text, plus) & _PHONE_WORDS or _word_after(text, end) in WORDS_AFTER else 0.2
    return Candidate(plus, end, PHONE, score)


WORDS_AFTER = frozenset(["office", "fax", "mobile", "cell", "home", "work", "phone", "tel"])
"""Words that make a telephone number of the number before them, one space or dash apart."""
LONGEST_AFTER = max(map(len, WORDS_AFTER))


def _word_after(text: str, end: int) -> str:
    if text[end : end + 1] not in (" ", "-"):
        return ""
    stop = end + 1
    while stop < len(text) and stop <= end + 1 + LONGEST_AFTER and text[stop].isalpha():
        stop += 1
    return text[end + 1 : stop].lower()


_PHONE_WORDS = frozenset(
    [
        "phone",
        "phones",
        "telephone",
        "tel",
        "telefon",
        "téléphone",
        "teléfono",
        "telefono",
        "call",
        "calling",
        "mobile",
        "mobil",
        "móvil",
        "cell",
        "cellphone",
        "fax",
        "desk",
        "contact",
        "whatsapp",
        "sms",
        "text",
        "dial",
        "ring",
        "reach",
        "answering",
        "hotline",
        "handy",
        "mob",
        "ph",
        "messages",
        "voicemail",
    ]
)


def _written(groups: Groups, index: int, most: int) -> tuple[int, list[int], list[str]]:
    """Return the groups that belong to the number from ``index``: last index, sizes and gaps; at most ``most`` digits.

    One group more than fits is included, so that the caller can tell a number that is too long.
    """
    spans = groups.spans
    sizes = [spans[index][1] - spans[index][0]]
    gaps: list[str] = []
    last = index
    while last + 1 < len(spans) and len(sizes) < _MAX_GROUPS and sum(sizes) <= most:
        gap = groups.gap(last)
        if (
            not gap
            or len(gap) > 3
            or "x" in gap
            or not NUMBER_GAP.issuperset(gap)
            or gap in ("--", "..", "//", "---")
        ):
            break
        gaps.append(gap)
        last += 1
        sizes.append(spans[last][1] - spans[last][0])
    return last, sizes, gaps


def _continues(text: str, start: int) -> bool:
    """Tell whether a national number at ``start`` would begin in the middle of another written number or amount."""
    before = _plain(text[max(0, start - 3) : start])
    if before[-1:] in ("$", "€", "£", "#", "=", "+", "*"):
        return True
    trimmed = before.rstrip(" ().-/")
    gap = before[len(trimmed) :]
    if trimmed[-1:].isdigit() and "\n" not in gap:
        return True
    return before[-1:] in (",", ":") and before[-2:-1].isdigit()


def _continues_after(text: str, end: int) -> bool:
    after = _plain(text[end : end + 2])
    if len(after) == 2 and after[1].isdigit() and after[0] in " .,:-/":
        return True
    return after[:1] in ("%", "€", "£")


def _extension(text: str, end: int) -> int:
    """Return the end of a number with its extension (``x123``), if it has one."""
    begin = end + (text[end : end + 1] == " ")
    if text[begin : begin + 1] != "x":
        return end
    stop = begin + 1
    while stop < len(text) and stop - begin <= 6 and text[stop] in "0123456789":
        stop += 1
    return stop if 1 < stop - begin <= 6 else end
