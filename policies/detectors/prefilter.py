"""One pass over the text that says where something may be (Hyperscan: linear in the text, whatever is in it).

A pattern here over-reports and never under-reports: the recognisers decide. Patterns have fixed or short bounded
lengths, so that the end that Hyperscan reports tells where to look.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any, Final, Literal

import hyperscan

from policies.detectors.secrets import HIT, KEYS, NAMES

Family = Literal["email", "number", "iban", "secret"]
FAMILIES: Final[tuple[Family, ...]] = ("email", "number", "iban", "secret")

EMAIL_HIT, NUMBER_HIT, IBAN_HIT, TOKEN_HIT, VALUE_HIT, URL_HIT, PRIVATE_KEY_HIT = range(7)
KEY_HITS: Final = 16
"""Hits from here on are keys: ``KEYS[hit - KEY_HITS]``."""

_DIGIT_GAP = rb"(?:[ ().\-/x]|\xc2\xa0|\xe2\x80[\x90-\x95\xaf]){0,3}"
_VALUE = rb"[A-Za-z0-9_\-./+~!@#$%^&*?]"
_NAMES = NAMES.encode()
_EDGE = rb"[^A-Za-z0-9]"


def _patterns(family: Family) -> list[tuple[int, bytes, bool]]:
    """Return (hit, expression, without regard to case) of a family."""
    if family == "email":
        return [(EMAIL_HIT, rb"[^\s]@[^\s]", False)]
    if family == "number":
        return [(NUMBER_HIT, rb"[0-9](?:" + _DIGIT_GAP + rb"[0-9]){6}[^0-9]", False)]
    if family == "iban":
        return [(IBAN_HIT, _EDGE + rb"[A-Za-z]{2}[0-9]{2}[ -]?[A-Za-z0-9]{4}[ -]?[A-Za-z0-9]{3}", False)]
    gap, quotes = rb"[ \t]{0,2}", rb"[\\\"']{0,2}"
    named = b"(?:" + _NAMES + b")" + quotes + gap + b"[:=]" + gap + quotes + _VALUE + b"{%d}" % HIT
    spoken = rb"(?:password|passphrase|pwd) is[: ]{1,2}" + quotes + _VALUE + b"{%d}" % HIT
    bearer = rb"bearer[ ]" + _VALUE + b"{%d}" % HIT
    user = rb"://[A-Za-z0-9_.~%+-]{1,64}:[A-Za-z0-9_\-.+~!#$%^&*?]{3,64}@"
    return [
        (TOKEN_HIT, _EDGE + rb"eyJ[A-Za-z0-9_-]{%d}" % HIT, False),
        (VALUE_HIT, named, True),
        (VALUE_HIT, spoken, True),
        (VALUE_HIT, bearer, True),
        (URL_HIT, user, False),
        (PRIVATE_KEY_HIT, rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----", False),
        *(
            (KEY_HITS + index, _EDGE + re.escape(kind.prefix).encode() + rb"[A-Za-z0-9_.-]{%d}" % HIT, False)
            for index, kind in enumerate(KEYS)
        ),
    ]


class Prefilter:
    """The compiled patterns of some families; safe to share among threads (each has its own scratch space)."""

    __slots__ = ("_database", "_local")

    def __init__(self, families: frozenset[Family]) -> None:
        patterns = [pattern for family in FAMILIES if family in families for pattern in _patterns(family)]
        database = hyperscan.Database()
        database.compile(
            expressions=[expression for _, expression, _ in patterns],
            ids=[hit for hit, _, _ in patterns],
            elements=len(patterns),
            flags=[
                hyperscan.HS_FLAG_DOTALL | (hyperscan.HS_FLAG_CASELESS if loose else 0)
                for *_, loose in patterns
            ],
        )
        self._database = database
        self._local = threading.local()

    def hits(self, text: str) -> list[tuple[int, int]]:
        """Return (end, hit) in ascending order; ``end`` is a position in ``text`` in code points.

        The text is scanned between two line ends, so that "not followed by a digit" holds at its edges too.
        """
        try:
            data = f"\n{text}\n".encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            data = f"\n{text}\n".encode("utf-8", "surrogatepass")
        found: list[tuple[int, int]] = []
        try:
            scratch = self._local.scratch
        except AttributeError:
            scratch = self._local.scratch = hyperscan.Scratch(self._database)
        self._database.scan(data, _collect, context=found, scratch=scratch)
        if not found:
            return found
        found.sort()
        return found if len(data) == len(text) + 2 else _to_code_points(data, found)


def _collect(hit: int, _start: int, end: int, _flags: int, found: Any) -> None:
    # A hit on the character after a number, or the second byte of the character after an @, ends one too far; the
    # leading line end makes up for one byte.
    found.append((end - 2 if hit == NUMBER_HIT else end - 3 if hit == EMAIL_HIT else end - 1, hit))


def _to_code_points(data: bytes, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Turn byte positions (less the leading line end) into code points, in one pass."""
    result: list[tuple[int, int]] = []
    byte, point = 1, 0
    for end, hit in found:
        point += len(data[byte : end + 1].decode("utf-8", "surrogatepass"))
        byte = end + 1
        result.append((point, hit))
    return result


@lru_cache(maxsize=16)
def prefilter(families: frozenset[Family]) -> Prefilter:
    """Return the prefilter of these families, compiled once a process."""
    return Prefilter(families)
