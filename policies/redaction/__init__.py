"""Redaction: a label in place of what the detectors find, in whole texts, in JSON and in streams of both."""

from __future__ import annotations

from functools import lru_cache

from policies.detectors import Candidate, Scanner
from policies.detectors.spans import PII, SECRETS
from policies.redaction.json_text import JsonStream
from policies.redaction.text import Judge, TextStream, apply

__all__ = [
    "JsonStream",
    "Judge",
    "TextStream",
    "always",
    "apply",
    "mask",
    "mask_json",
    "redact",
    "redact_json",
]

_MASK_SCORE = 0.4


def always(_: Candidate) -> bool:
    """Replace every match."""
    return True


def redact(text: str, scanner: Scanner, judge: Judge = always, before: str = "") -> str:
    """Return ``text`` with a label in place of each match that ``judge`` picks."""
    return apply(TextStream(scanner, judge, before).feed(text, final=True), text)[0]


def redact_json(text: str, scanner: Scanner, judge: Judge = always) -> str:
    """Return JSON with its strings (and card numbers) redacted; it stays valid JSON."""
    return JsonStream(scanner, judge).feed(text, final=True)


@lru_cache(maxsize=1)
def _everything() -> Scanner:
    return Scanner(dict.fromkeys((*PII, *SECRETS), _MASK_SCORE))


def mask(text: str) -> str:
    """Return ``text`` with all personal data and secrets replaced: what may be written to a record."""
    return redact(text, _everything())


def mask_json(text: str) -> str:
    """Return JSON with everything in its strings masked, and still the same JSON otherwise."""
    return redact_json(text, _everything())
