"""Pydantic's complaints in a person's words: what is wrong at which key, and what was probably meant.

Values are not repeated, except words where only certain words are allowed: a secret typed into the wrong place must
not come out in a message.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from airi.config.kinds import Name, SecretReference
from airi.config.positions import Where

SECRET_HINT = "expected ${env:NAME} or ${file:PATH}; a secret itself must not stand here"  # noqa: S105  # a hint
_QUOTED = re.compile(r"'([^']*)'")
_SHOWN = 60


def _pattern(annotated: Any) -> str:
    return str(get_args(annotated)[1].metadata[0].pattern)


_NAME_PATTERN = _pattern(Name)
_SECRET_PATTERN = _pattern(SecretReference)
_EXPECTED = {
    "list_type": "expected a list (lines that begin with '- ')",
    "tuple_type": "expected a list (lines that begin with '- ')",
    "dict_type": "expected a mapping (lines of 'key: value')",
    "model_type": "expected a mapping (lines of 'key: value')",
    "model_attributes_type": "expected a mapping (lines of 'key: value')",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word that is close enough, or nothing."""
    close = difflib.get_close_matches(word[:_SHOWN], sorted(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def explain(error: ValidationError, model: type[BaseModel], where: Where) -> list[str]:
    """Return one line for each fault, in the order of the file."""
    found = []
    for fault in error.errors(include_url=False):
        path = tuple(part for part in fault["loc"] if part != "[key]")
        line = where.mark.line_of(path) if where.mark else 0
        found.append((line, f"{where(*path)}: {_message(fault, model, path)}"))
    return [text for _, text in sorted(found, key=lambda item: item[0])]


def _message(fault: ErrorDetails, model: type[BaseModel], path: tuple[str | int, ...]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(str(path[-1]), keys_at(model, path[:-1]))
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return _literal(fault["input"], str(context["expected"]))
    if kind == "string_pattern_mismatch":
        return _mismatch(str(context["pattern"]))
    if kind == "string_type":
        number = isinstance(fault["input"], int | float)
        return "expected text" + ("; put it in quotes" if number else "")
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    return _plain(fault["msg"])


def _literal(given: Any, expected: str) -> str:
    choices = _QUOTED.findall(expected)
    if not isinstance(given, str) or len(given) > _SHOWN:
        return f"expected {expected}"
    return f"expected {expected}, got {given!r}" + did_you_mean(given, choices)


def _mismatch(pattern: str) -> str:
    if pattern == _SECRET_PATTERN:
        return SECRET_HINT
    if pattern == _NAME_PATTERN:
        return (
            "a name has up to 128 letters, digits and . _ / : @ -, and begins and ends with a letter or digit"
        )
    return f"does not have the form {pattern}"


def _plain(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Input ")
    return text[:1].lower() + text[1:]


def keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Return the keys that a configuration may have at ``path`` within ``model``."""
    kinds: list[Any] = [model]
    for part in path:
        kinds = [inner for kind in kinds for inner in _inside(kind, part)]
    names = []
    for kind in kinds:
        if _is_model(kind):
            names += [field.alias or name for name, field in kind.model_fields.items()]
    return names


def _inside(kind: Any, part: str | int) -> list[Any]:
    """Return the possible types (without unions and annotations) of what lies at ``part`` in a ``kind``."""
    if _is_model(kind):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                return _alternatives(field.annotation)
        return []
    arguments = get_args(kind)
    origin = get_origin(kind)
    if origin in (list, tuple) and arguments:
        return _alternatives(arguments[0])
    if origin is dict:
        return _alternatives(arguments[1])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [inner for part in get_args(annotation) for inner in _alternatives(part)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
