"""Prompts: Jinja2 in a sandbox that reads and cannot do.

Templates come from tenants. They see values, loops and a list of filters; they call no methods except a few
harmless ones, and what they produce is bounded while it is produced.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agents.errors import StepFailed
from agents.templates import RESULT_LIMIT, Reference

_RANGE_LIMIT = 1_000
_LOOP_DEPTH = 2
_TEMPLATE_LIMIT = 100_000
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse",
    "round", "select", "selectattr", "sort", "string", "sum", "title", "trim", "truncate", "unique", "upper",
    "wordcount",
)  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    dict: frozenset({"items", "keys", "values", "get"}),
    str: frozenset({"startswith", "endswith", "strip", "split", "lower", "upper"}),
}


def _range(*arguments: int) -> range:
    result = range(*arguments)
    if len(result) > _RANGE_LIMIT:
        raise SecurityError(f"range() gives at most {_RANGE_LIMIT:,} numbers")
    return result


def _tojson(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text, old, new = str(text), str(old), str(new)
    if len(text) + text.count(old) * len(new) > RESULT_LIMIT:
        raise SecurityError("replace: the result is too long")
    result: str = text.replace(old, new, count)
    return result


def _finalize(value: Any) -> Any:
    """Lists and maps read better as JSON than as Python."""
    return _tojson(value) if isinstance(value, dict | list) else value


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            autoescape=False,
            keep_trailing_newline=False,
            finalize=_finalize,
        )
        self.filters = {name: self.filters[name] for name in _FILTERS} | {
            "tojson": _tojson,
            "replace": _replace,
        }
        self.globals = {"range": _range}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Keep operators from making values that are too large."""
        if operator == "%" and isinstance(left, str):
            raise SecurityError("'%' does not format texts here; write {{ value }}")
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        if operator == "+" and sum(sizes) > RESULT_LIMIT:
            raise SecurityError("'+': the result is too long")
        if operator == "*" and sizes:
            raise SecurityError("'*' does not repeat texts or lists here")
        if operator == "**" or (operator == "*" and max(abs(left), abs(right)) > 2**63):
            raise SecurityError(f"{operator!r}: the result is too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only data and a few methods; never anything of a class or a module."""
        if callable(value):
            return attr in _METHODS.get(type(obj), frozenset())
        return super().is_safe_attribute(obj, attr, value)

    def is_safe_callable(self, obj: Any) -> bool:
        """``range`` and the methods of ``_METHODS``."""
        owner = getattr(obj, "__self__", None)
        return obj is _range or getattr(obj, "__name__", "") in _METHODS.get(type(owner), frozenset())


_environment = _Environment()


def _check(tree: nodes.Template) -> None:
    for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Macro, nodes.CallBlock):
        if next(tree.find_all(kind), None) is not None:
            raise SecurityError(f"{kind.__name__.lower()} is not available in prompts")

    def depth(node: nodes.Node) -> int:
        below = max((depth(child) for child in node.iter_child_nodes()), default=0)
        return below + isinstance(node, nodes.For)

    if depth(tree) > _LOOP_DEPTH:
        raise SecurityError(f"loops may be nested {_LOOP_DEPTH} deep")


def _reference(node: nodes.Node) -> Reference | None:
    """The step or input that a node names; ``None`` for anything else, and for what only a run tells."""
    if not isinstance(node, nodes.Getattr | nodes.Getitem):
        return None
    if not isinstance(node.node, nodes.Name) or node.node.name not in ("steps", "inputs"):
        return None
    if isinstance(node, nodes.Getattr):
        return None if node.attr in _METHODS[dict] else (node.node.name, node.attr)
    return (node.node.name, str(node.arg.value)) if isinstance(node.arg, nodes.Const) else None


class _Compiled(NamedTuple):
    """A template, the names that it sees, and the steps and inputs that it looks at."""

    template: jinja2.Template
    names: frozenset[str]
    references: frozenset[Reference]


@lru_cache(maxsize=1_024)
def _compiled(text: str) -> _Compiled:
    if len(text) > _TEMPLATE_LIMIT:
        raise SecurityError(f"a template has at most {_TEMPLATE_LIMIT:,} characters")
    tree = _environment.parse(text)
    _check(tree)
    found = {_reference(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem))}
    names = frozenset(find_undeclared_variables(tree) - {"range"})
    return _Compiled(_environment.from_string(tree), names, frozenset(filter(None, found)))


def problem(text: str, names: tuple[str, ...]) -> str | None:
    """What is wrong with a template that can see ``names``, or ``None``."""
    if "${{" in text:
        return "a prompt is a Jinja2 template: write {{ … }} without the '$'"
    try:
        used = _compiled(text).names
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except SecurityError as error:
        return str(error)
    unknown = sorted(used - set(names))
    return f"unknown name {unknown[0]!r}; a prompt here sees {', '.join(names)}" if unknown else None


def step_references(text: str) -> set[str]:
    """The ids of the steps that a template looks at; none for a text that is no template."""
    try:
        return {name for base, name in _compiled(text).references if base == "steps"}
    except (jinja2.TemplateError, SecurityError):
        return set()


def references(text: str) -> set[Reference]:
    """The steps and inputs that a sound template looks at."""
    return set(_compiled(text).references)


def render(text: str, values: Mapping[str, Any]) -> str:
    """The prompt; raises :class:`StepFailed` of class ``expression``."""
    parts: list[str] = []
    size = 0
    try:
        for part in _compiled(text).template.generate(**values):
            size += len(part)
            if size > RESULT_LIMIT:
                raise SecurityError(f"the prompt came to more than {RESULT_LIMIT:,} characters")
            parts.append(part)
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        ZeroDivisionError,
        OverflowError,
        LookupError,
    ) as error:
        raise StepFailed("expression", f"prompt: {type(error).__name__}: {str(error)[:300]}") from error
    return "".join(parts)
