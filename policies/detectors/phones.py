"""The shapes that telephone numbers are written in, and how sure each one is.

International numbers (``+``) are recognised by country code and length (ITU-T E.164); national ones by the shapes that
countries use. A shape that other numbers share counts only near a word such as "phone" or "call".
"""

from __future__ import annotations

from collections.abc import Sequence

# ITU-T E.164 country codes: the two-digit ones, and the first two digits of the three-digit ones.
_TWO = frozenset(
    [
        "20",
        "27",
        "30",
        "31",
        "32",
        "33",
        "34",
        "36",
        "39",
        "40",
        "41",
        "43",
        "44",
        "45",
        "46",
        "47",
        "48",
        "49",
        "51",
        "52",
        "53",
        "54",
        "55",
        "56",
        "57",
        "58",
        "60",
        "61",
        "62",
        "63",
        "64",
        "65",
        "66",
        "81",
        "82",
        "84",
        "86",
        "90",
        "91",
        "92",
        "93",
        "94",
        "95",
        "98",
    ]
)
_THREE = frozenset(
    [
        "21",
        "22",
        "23",
        "24",
        "25",
        "26",
        "29",
        "35",
        "37",
        "38",
        "42",
        "50",
        "59",
        "67",
        "68",
        "69",
        "80",
        "85",
        "87",
        "88",
        "96",
        "97",
        "99",
    ]
)
_DATES = {(4, 2, 2), (2, 2, 4), (1, 2, 4), (2, 1, 4), (1, 1, 4), (4, 1, 1), (4, 1, 2), (4, 2, 1)}

Found = tuple[int, float, bool]
"""Groups used, score, and whether the score holds only near a word that speaks of telephones."""


def phone_score(
    first: str, sizes: Sequence[int], gaps: Sequence[str], international: bool, opening: str
) -> Found | None:
    """Judge a written number by its first group, group sizes and gaps; ``opening`` is ``(``, ``+`` or empty."""
    if international:
        return _international(first, sizes, gaps)
    digits = sum(sizes)
    if not 7 <= digits <= 13:
        return None
    shape = tuple(sizes)
    if shape[:3] in _DATES and gaps[0] == gaps[1] and gaps[0] in ("-", ".", "/"):
        return None
    if shape in ((3, 2, 4), (5, 4)) or (len(shape) == 4 and set(gaps) == {"."} and max(shape) <= 3):
        return None  # US social security number, ZIP+4, IPv4 address
    bracketed = opening == "(" and bool(gaps) and gaps[0].startswith(")")
    if bracketed != any(")" in gap for gap in gaps):
        return None if not bracketed else (len(sizes), 0.5, True)
    return _national(first, shape, gaps, bracketed)


def _national(first: str, shape: tuple[int, ...], gaps: Sequence[str], bracketed: bool) -> Found | None:
    used, digits = len(shape), sum(shape)
    plain = set(gaps[1:] if bracketed else gaps)
    american = shape == (3, 3, 4) or (shape in ((1, 3, 3, 4), (3, 3, 3, 4)) and first in ("1", "001"))
    if american and (len(shape) > 3 or first[0] in "23456789"):
        # North America: an area never begins with 0 or 1.
        return used, 0.7, " " in plain and not bracketed
    if bracketed and digits >= 8 and len(first) <= 4 and len(plain) <= 1:
        return used, 0.6, False
    if first.startswith("00") and digits >= 10 and used >= 3:
        return used, 0.55, False
    trunk = first[0] == "0" and len(first) >= 2 and first[1] != "0"
    if trunk and 9 <= digits <= 11 and used >= 2 and min(shape) >= 2 and len(set(gaps[1:])) <= 1:
        # Where all groups are pairs parted by spaces it may as well be a row of a table.
        return used, 0.55, set(shape) == {2} and plain == {" "}
    if used == 1:
        return (1, 0.6, True) if 9 <= digits <= 12 else None
    return (used, 0.6, True) if digits <= 12 and max(shape) <= 8 and len(plain) <= 2 else None


def _international(first: str, sizes: Sequence[int], gaps: Sequence[str]) -> Found | None:
    if first[0] == "0":
        return None
    if first[0] not in "17" and first[:2] not in _TWO and first[:2] not in _THREE and len(first) > 1:
        return None
    exact = 11 if first[0] == "1" else None
    used = digits = best = 0
    for used, size in enumerate(sizes, 1):
        digits += size
        if digits > 15 or (used > 1 and _breaks(gaps, used - 2, digits - size)):
            break
        if digits == exact or (exact is None and digits >= 8):
            best = used
    return (best, 0.85, False) if best else None


def _breaks(gaps: Sequence[str], index: int, digits: int) -> bool:
    """Tell whether the number probably ended before this gap: complete, and the kind of gap changes."""
    return digits >= 11 and index > 0 and gaps[index] != gaps[index - 1]
