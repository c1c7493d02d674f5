"""What a detector finds, and the names that policies use for it."""

from __future__ import annotations

from typing import Final, NamedTuple

EMAIL: Final = "pii.email"
CARD: Final = "pii.card"
IBAN: Final = "pii.iban"
PHONE: Final = "pii.phone"
KEY: Final = "secret.key"
TOKEN: Final = "secret.token"  # noqa: S105  # the name of a class
PRIVATE_KEY: Final = "secret.private_key"
PASSWORD: Final = "secret.password"  # noqa: S105  # the name of a class
WORD: Final = "word"

PII: Final = (EMAIL, CARD, IBAN, PHONE)
SECRETS: Final = (KEY, TOKEN, PRIVATE_KEY, PASSWORD)

DETECTORS: Final[dict[str, tuple[str, ...]]] = {
    "pii": PII,
    "email": (EMAIL,),
    "card": (CARD,),
    "iban": (IBAN,),
    "phone": (PHONE,),
    "secrets": SECRETS,
    "words": (WORD,),
}
"""A policy's ``detectors: [{id: …}]`` and the classes that each one reports."""

LABELS: Final[dict[str, str]] = {
    EMAIL: "[EMAIL]",
    CARD: "[CARD]",
    IBAN: "[IBAN]",
    PHONE: "[PHONE]",
    KEY: "[SECRET]",
    TOKEN: "[SECRET]",
    PRIVATE_KEY: "[SECRET]",
    PASSWORD: "[SECRET]",
    WORD: "[WORD]",
}
"""What stands in a text instead of a match. No label is itself a match of any detector."""

# The longest run of characters that decides whether, where and how a match begins. Everything a recogniser looks at
# lies within LOOK_BACK before and LOOK_AHEAD after the start of its match; this is what makes streams exact.
LOOK_BACK: Final = 96
LOOK_AHEAD: Final = 640


class Candidate(NamedTuple):
    """A match: code points ``[start, end)``. ``open`` names the run that a match of unbounded length continues in;
    ``word`` is the listed word that was found (of the class :data:`WORD`).
    """

    start: int
    end: int
    name: str
    score: float
    open: str = ""
    word: str = ""


def order(candidate: Candidate) -> tuple[int, int, float, str]:
    """Return the key by which matches compete: the leftmost first, then the longest, the surest, then by name."""
    return candidate.start, -candidate.end, -candidate.score, candidate.name
