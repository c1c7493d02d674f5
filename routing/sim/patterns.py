"""Strings that match a simple regular expression."""

from __future__ import annotations

import random
import re
import re._parser as parser  # type: ignore[import-not-found]  # there is no public parser of patterns
from typing import Any

_MAX_REPEAT = 64
_MAX_CHARACTERS = 10_000
_VISIBLE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-. "


def matching(pattern: str, seed: random.Random) -> str | None:
    """Return a string that ``pattern`` finds a match in, or ``None`` when it is beyond what is made here."""
    try:
        text = _sequence(parser.parse(pattern), seed)
        return text if re.search(pattern, text) else None
    except (re.error, _BeyondError, RecursionError):
        return None


class _BeyondError(Exception):
    """A construct that has no simple example (look-around, back reference …)."""


def _sequence(items: Any, seed: random.Random) -> str:
    return "".join([_one(operator, argument, seed) for operator, argument in items])


def _one(operator: Any, argument: Any, seed: random.Random) -> str:
    match str(operator):
        case "LITERAL":
            return chr(argument)
        case "NOT_LITERAL":
            return next(c for c in _VISIBLE if ord(c) != argument)
        case "ANY":
            return "a"
        case "AT":
            return ""
        case "IN":
            return _member(argument, seed)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, item = argument
            times = min(max(low, 1), high) if low < _MAX_REPEAT else low
            if times * max(len(_sequence(item, seed)), 1) > _MAX_CHARACTERS:
                raise _BeyondError
            return "".join([_sequence(item, seed) for _ in range(times)])
        case "SUBPATTERN":
            return _sequence(argument[-1], seed)
        case "BRANCH":
            return _sequence(seed.choice(argument[1]), seed)
        case _:
            raise _BeyondError


def _member(items: Any, seed: random.Random) -> str:
    candidates = [c for c in _VISIBLE if _contains(items, c)]
    if candidates:
        return seed.choice(candidates)
    for operator, argument in items:
        if str(operator) == "LITERAL":
            return chr(argument)
        if str(operator) == "RANGE":
            return chr(argument[0])
    raise _BeyondError


def _contains(items: Any, character: str) -> bool:
    negated = found = False
    code = ord(character)
    for operator, argument in items:
        match str(operator):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found |= code == argument
            case "RANGE":
                found |= argument[0] <= code <= argument[1]
            case "CATEGORY":
                found |= _in_category(str(argument), character)
            case _:
                raise _BeyondError
    return found != negated


def _in_category(category: str, character: str) -> bool:
    tests = {
        "DIGIT": character.isdigit(),
        "SPACE": character.isspace(),
        "WORD": character.isalnum() or character == "_",
    }
    name = category.rsplit("_", 1)[-1]
    if name not in tests:
        raise _BeyondError
    return tests[name] != ("_NOT_" in category)
