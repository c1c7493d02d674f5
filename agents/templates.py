"""Expressions of a workflow: ``${{ … }}`` holds CEL (:mod:`airi.expressions`).

A value that is one expression keeps the expression's type; in the middle of a text the value is put in as text
(JSON for lists and maps). Prompts are Jinja2, see :mod:`agents.prompts`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from agents.errors import StepFailed
from airi.errors import AiriError
from airi.expressions import Declarations, Program, Template, compile_template
from airi.expressions import compile as compile_cel

_REFERENCE = re.compile(
    r"""(?<![\w.])(steps|inputs)\s*(?:\.\s*([A-Za-z_]\w*)\b(?!\s*\()|\[\s*["']([^"']+)["']\s*\])"""
)
Reference = tuple[str, str]
"""``("steps", "plan")`` for ``steps.plan``, ``("inputs", "topic")`` for ``inputs["topic"]``."""
RESULT_LIMIT = 1_000_000
"""The most characters that an expression put into a text, or a prompt, may come to."""
VARIABLES = ("inputs", "run", "steps", "tenant", "workflow")
"""What every expression can see; a fan-out adds its ``each`` and ``index``."""


def names_with(*more: str) -> tuple[str, ...]:
    """The names that expressions of one place can see."""
    return tuple(sorted({*VARIABLES, *more}))


@lru_cache(maxsize=256)
def _declarations(names: tuple[str, ...]) -> Declarations:
    return Declarations(dict.fromkeys(names, "dyn"))


@lru_cache(maxsize=4_096)
def _template(text: str, names: tuple[str, ...]) -> Template:
    return compile_template(text, _declarations(names))


@lru_cache(maxsize=4_096)
def _program(text: str, names: tuple[str, ...]) -> Program:
    return compile_cel(text, _declarations(names))


def is_expression(value: Any) -> bool:
    """Whether the value looks like one expression and nothing else."""
    return isinstance(value, str) and value.strip().startswith("${{") and value.strip().endswith("}}")


def condition(text: str) -> str:
    """The CEL of a condition, which may be written with or without ``${{ }}``."""
    text = text.strip()
    return text[3:-2].strip() if is_expression(text) else text


def check(value: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str | int, ...], str | set[Reference]]]:
    """Compile every expression in a value; yield (place, what is wrong) or (place, the steps and inputs it looks at)."""
    if isinstance(value, str):
        try:
            template = _template(value.strip() if is_expression(value) else value, names)
        except AiriError as error:
            yield (), error.message
        else:
            yield (
                (),
                {
                    name
                    for part in template.parts
                    if isinstance(part, Program)
                    for name in references_in(part.text)
                },
            )
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (((key, *place), found) for place, found in check(item, names))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from (((index, *place), found) for place, found in check(item, names))


def check_condition(text: str, names: tuple[str, ...]) -> str | set[Reference]:
    """What is wrong with a condition, or the steps and inputs that it looks at."""
    try:
        compile_cel(condition(text), _declarations(names), expect="bool")
    except AiriError as error:
        return error.message
    return references_in(condition(text))


def references_in(expression: str) -> set[Reference]:
    """The steps and inputs that an expression names."""
    return {(match[1], match[2] or match[3]) for match in _REFERENCE.finditer(expression)}


def _steps_in(expression: str) -> set[str]:
    return {name for base, name in references_in(expression) if base == "steps"}


def step_references(text: str) -> set[str]:
    """The steps that a text with expressions may look at (perhaps more: words of the text count too)."""
    return _steps_in(text) if "${{" in text else set()


def condition_references(text: str) -> set[str]:
    """The steps that a condition looks at."""
    return _steps_in(condition(text))


def evaluate(text: str, values: Mapping[str, Any]) -> Any:
    """The value of a condition; raises :class:`StepFailed` of class ``expression``."""
    try:
        return _program(condition(text), tuple(sorted(values))).evaluate(values)
    except AiriError as error:
        raise StepFailed("expression", error.message[:500]) from error


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """A copy of ``value`` with every expression replaced by what it comes to."""
    if isinstance(value, str):
        return _resolve_text(value, values) if "${{" in value else value
    if isinstance(value, Mapping):
        return {key: resolve(item, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, values) for item in value]
    return value


def _resolve_text(text: str, values: Mapping[str, Any]) -> Any:
    try:
        result = _template(text.strip() if is_expression(text) else text, tuple(sorted(values))).render(
            values
        )
    except AiriError as error:
        raise StepFailed("expression", error.message[:500]) from error
    if isinstance(result, str) and len(result) > RESULT_LIMIT:
        raise StepFailed("expression", f"a text came to more than {RESULT_LIMIT:,} characters")
    return result
