"""How a replica misbehaves or what it says, on request: see docs/sim.md."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from airi.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One request's script. Counts of chunks count those with content; times are milliseconds."""

    text: str | None = None
    chunks: tuple[int, ...] = ()
    tool_calls: tuple[dict[str, Any], ...] = ()
    tokens: int | None = None
    finish_reason: str | None = None
    latency_ms: float = 0
    error_rate: float | None = None
    status: int | None = None
    retry_after: float | None = None
    message: str | None = None
    disconnect_after: int | None = None
    stall_after: int | None = None
    end_after: int | None = None
    no_done: bool = False
    no_usage: bool = False
    ignore_max_tokens: bool = False
    lie_usage: dict[str, int] | float | None = None


NORMAL = Behaviour()
_NAMES = {field.name: str(field.type) for field in fields(Behaviour)}


def parse(source: Any, where: str) -> Behaviour:
    """Read a behaviour from a JSON object, its text, or ``k=v; k=v``; raise :class:`InvalidRequestError`."""
    values = _as_object(source, where)
    known: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _NAMES:
            raise InvalidRequestError(
                f"{where}: there is no behaviour {key!r}; there are {', '.join(sorted(_NAMES))}."
            )
        try:
            known[key] = _convert(_NAMES[key], value)
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"{where}: {key} cannot be {value!r}.") from error
    return Behaviour(**known)


def _as_object(source: Any, where: str) -> dict[str, Any]:
    if isinstance(source, bytes):
        source = source.decode("utf-8", "replace")
    if isinstance(source, str):
        text = source.strip()
        if text.startswith("{"):
            try:
                source = json.loads(text)
            except ValueError as error:
                raise InvalidRequestError(f"{where}: not JSON: {error}.") from error
        else:
            pairs = (part.partition("=") for part in text.split(";") if part.strip())
            source = {key.strip(): value.strip() or "true" for key, _, value in pairs}
    if not isinstance(source, dict):
        raise InvalidRequestError(f"{where}: expected an object or k=v; k=v.")
    return source


def _convert(kind: str, value: Any) -> Any:
    if value is None and "None" in kind:
        return None
    if kind.startswith("bool"):
        return value if isinstance(value, bool) else str(value).lower() in ("true", "1", "yes")
    if kind.startswith("int"):
        return int(value)
    if kind.startswith("float"):
        return float(value)
    if kind.startswith("str"):
        return str(value)
    if kind.startswith("dict"):
        return {str(k): int(v) for k, v in value.items()} if isinstance(value, dict) else float(value)
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.split(",")
    if not isinstance(value, list | tuple):
        value = [value]
    if kind == "tuple[int, ...]":
        sizes = tuple(int(item) for item in value)
        if any(size < 1 for size in sizes):
            raise ValueError("sizes are positive")
        return sizes
    if not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in value):
        raise ValueError("each tool call is an object with a name")
    return tuple(value)


@dataclass(slots=True)
class Rule:
    """A behaviour that a replica shows to requests for ``model`` (all when ``None``), ``left`` more times."""

    behaviour: Behaviour
    model: str | None
    left: int | None


class Rules:
    """What was set by ``POST /control``; the newest rule that matches wins."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []

    def add(self, body: dict[str, Any]) -> None:
        """Add a rule from ``{"model", "next", …behaviour}``."""
        values = dict(body)
        model, count = values.pop("model", None), values.pop("next", None)
        if count is not None and (not isinstance(count, int) or count < 1):
            raise InvalidRequestError("control: next is a positive number.")
        if len(self._rules) >= 100:
            raise InvalidRequestError('control: there are 100 rules; send {"clear": true} first.')
        self._rules.append(Rule(parse(values, "control"), str(model) if model is not None else None, count))

    def clear(self) -> None:
        """Behave."""
        self._rules.clear()

    def take(self, model: str) -> Behaviour | None:
        """Return the behaviour for the next request to ``model`` and count it."""
        for rule in reversed(self._rules):
            if rule.model not in (None, model):
                continue
            if rule.left is not None:
                rule.left -= 1
                if not rule.left:
                    self._rules.remove(rule)
            return rule.behaviour
        return None

    def describe(self) -> list[dict[str, Any]]:
        """Return the rules as they were given."""
        result = []
        for rule in self._rules:
            shown = {name: getattr(rule.behaviour, name) for name in _NAMES}
            changed = {name: value for name, value in shown.items() if value != getattr(NORMAL, name)}
            result.append({"model": rule.model, "next": rule.left, **changed})
        return result
