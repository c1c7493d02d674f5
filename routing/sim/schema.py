"""Values that satisfy a JSON schema, for OpenAI's strict subset and a little more.

Strings that are free take words of the user's; whatever cannot be met (a pattern out of the ordinary, a schema that
contradicts itself) is met as nearly as possible, since a simulated model has no other way to fail well.
"""

from __future__ import annotations

import math
import random
import re
from typing import Any

from routing.sim.patterns import matching

Schema = dict[str, Any] | bool

_MAX_DEPTH = 24
# A schema that holds itself without an end is cut off: no value would satisfy it.
_MAX_VALUES = 10_000
_MAX_ITEMS = 1000
_MAX_CHARACTERS = 100_000
_FORMATS = {
    "date-time": "2026-01-15T09:30:00Z",
    "date": "2026-01-15",
    "time": "09:30:00Z",
    "duration": "PT1H",
    "email": "sim@example.com",
    "hostname": "sim.example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "uri": "https://example.com/sim",
}
_NUMBER = re.compile(r"(?<![\w.])-?\d{1,15}(?:\.\d{1,6})?(?![\w.]*\d)")
_QUOTED = re.compile(r"[\"“«‘']([^\"“”«»‘’']{1,200})[\"”»’']")
_NAMED = re.compile(r"(?<=[\w,;] )[A-Z][\w.-]*(?: [A-Z][\w.-]*)*")
# Fields that hold a sentence get the user's whole text; the others the name in it that stands out.
_SENTENCES = (
    "query",
    "question",
    "text",
    "message",
    "prompt",
    "content",
    "body",
    "description",
    "summary",
    "input",
)
_UNTYPED_HINTS = (
    ("object", ("properties", "required", "additionalProperties")),
    ("array", ("items", "minItems", "maxItems", "prefixItems")),
    ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
)


class Generator:
    """Makes values for one schema document (``$ref`` is resolved within it)."""

    def __init__(self, document: Schema, seed: random.Random, words: str) -> None:
        self._document = document
        self._random = seed
        self._left = _MAX_VALUES
        self._words = words.strip()
        self._numbers = [float(found) for found in _NUMBER.findall(words)[:32]]

    def value(self, schema: Schema | None = None, name: str = "", depth: int = 0) -> Any:
        """Return a value for ``schema`` (the whole document by default)."""
        if schema is None:
            schema = self._document
        self._left -= 1
        if self._left < 0 or depth > 2 * _MAX_DEPTH:
            return None
        if not isinstance(schema, dict) or not schema:
            return self._string({}, name)
        if "$ref" in schema:
            return self.value(self._resolve(str(schema["$ref"])), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._choose(schema["enum"])
        branches = schema.get("anyOf") or schema.get("oneOf")
        if branches:
            return self._branch(schema, branches, name, depth)
        if schema.get("allOf"):
            return self.value(self._merged(schema), name, depth + 1)
        return self._typed(schema, name, depth)

    def _typed(self, schema: dict[str, Any], name: str, depth: int) -> Any:
        kind = schema.get("type") or self._guess(schema)
        if isinstance(kind, list):
            choices = (
                [k for k in kind if k != "null"] if depth < _MAX_DEPTH or "null" not in kind else ["null"]
            )
            kind = choices[0] if choices else "null"
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, name, depth)
            case "integer" | "number":
                return self._number(schema, kind == "integer")
            case "boolean":
                return self._random.random() < 0.5
            case "null":
                return None
            case _:
                return self._string(schema, name)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties: dict[str, Any] = schema.get("properties") or {}
        required = set(schema.get("required") or ())
        # Deep down only what is required is made, so that a schema that holds itself comes to an end.
        wanted = [key for key in properties if key in required or depth < 4]
        result = {key: self.value(properties[key], key, depth + 1) for key in wanted}
        for key in sorted(required - set(properties)):
            result[key] = self._string({}, key)
        extra = schema.get("additionalProperties")
        for index in range(len(result), min(int(schema.get("minProperties") or 0), _MAX_ITEMS)):
            result[f"key{index}"] = self.value(
                extra if isinstance(extra, dict) else {}, f"key{index}", depth + 1
            )
        return result

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> list[Any]:
        lowest = min(int(schema.get("minItems") or 0), _MAX_ITEMS)
        highest = int(schema.get("maxItems", max(lowest, 3)))
        wanted = lowest if depth >= 6 else min(max(lowest, 2), highest)
        prefix: list[Schema] = schema.get("prefixItems") or []
        items: list[Any] = []
        attempts = 0
        while len(items) < wanted and attempts < wanted + 64:
            attempts += 1
            index = len(items)
            item = self.value(
                prefix[index] if index < len(prefix) else schema.get("items", {}), name, depth + 1
            )
            if item in items:
                if isinstance(item, str) and _is_free(schema.get("items")):
                    item = f"{item} ({index + 1})"
                elif schema.get("uniqueItems"):
                    continue
            items.append(item)
        return items

    def _number(self, schema: dict[str, Any], whole: bool) -> int | float:
        lowest = float(schema.get("minimum", -math.inf))
        highest = float(schema.get("maximum", math.inf))
        step = float(schema.get("multipleOf") or (1 if whole else 0.5))
        # Draft 4 wrote exclusive bounds as flags beside the bound.
        low_open, high_open = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        strictly_above = _open_bound(low_open, lowest, -math.inf)
        strictly_below = _open_bound(high_open, highest, math.inf)
        low, high = max(lowest, strictly_above), min(highest, strictly_below)
        start = low if low != -math.inf else (high - 10 * step if high < 10 else 1.0)
        first = math.ceil(start / step)
        if first * step <= strictly_above:
            first += 1
        last = first + 9 if high == math.inf else math.floor(high / step)
        if last * step >= strictly_below:
            last -= 1
        last_allowed = math.inf if high == math.inf else last
        if last < first:
            return int(low) if whole else (low + high) / 2
        for number in self._numbers:
            # Numbers the user named come first, each once, where they fit.
            if first * step <= number <= last_allowed * step and (number / step).is_integer():
                self._numbers.remove(number)
                return int(number) if number.is_integer() else number
        value = self._random.randint(first, min(last, first + 99)) * step
        return int(value) if whole or value.is_integer() else value

    def _string(self, schema: dict[str, Any], name: str) -> str:
        if schema.get("pattern"):
            made = matching(str(schema["pattern"]), self._random)
            if made is not None:
                return made
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = self._said(name) or f"simulated {name}".strip()
        shortest, longest = min(int(schema.get("minLength") or 0), _MAX_CHARACTERS), schema.get("maxLength")
        while len(text) < shortest:
            text = f"{text} {text}" if text else "simulated"
        return text if longest is None else text[: int(longest)]

    def _said(self, name: str) -> str:
        if not any(hint in name.lower() for hint in _SENTENCES):
            found = _QUOTED.search(self._words) or _NAMED.search(self._words)
            if found:
                return found.group(found.lastindex or 0).rstrip(".")
        return self._words

    def _branch(self, schema: dict[str, Any], branches: list[Schema], name: str, depth: int) -> Any:
        base = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}
        concrete = [b for b in branches if not (isinstance(b, dict) and b.get("type") == "null")]
        if depth >= _MAX_DEPTH // 4 and len(concrete) < len(branches):
            return None
        if not concrete:
            return None
        # The first branch is what an author means; deep down the last is likelier to be the one that ends.
        chosen = concrete[0] if depth < 8 else concrete[-1]
        if isinstance(chosen, dict) and "properties" in base:
            return self.value(self._merged({"allOf": [base, chosen]}), name, depth + 1)
        return self.value(chosen, name, depth + 1)

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            if isinstance(part, dict) and "$ref" in part:
                part = self._resolve(str(part["$ref"]))
            if not isinstance(part, dict):
                continue
            for key, value in part.items():
                if key == "properties":
                    merged[key] = {**merged.get(key, {}), **value}
                elif key == "required":
                    merged[key] = [*merged.get(key, []), *value]
                else:
                    merged[key] = value
        return merged

    def _resolve(self, reference: str) -> Schema:
        node: Any = self._document
        for step in reference.removeprefix("#").strip("/").split("/"):
            if not step:
                continue
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or key not in node:
                return {}
            node = node[key]
        return node if isinstance(node, dict | bool) else {}

    def _choose(self, values: list[Any]) -> Any:
        for value in values:
            if isinstance(value, str) and value and value.lower() in self._words.lower():
                return value
        return self._random.choice(values)

    def _guess(self, schema: dict[str, Any]) -> str:
        for kind, hints in _UNTYPED_HINTS:
            if any(hint in schema for hint in hints):
                return kind
        return "string"


def _is_free(schema: Any) -> bool:
    """Whether any text will do."""
    return not isinstance(schema, dict) or not schema.keys() - {"type", "title", "description", "minLength"}


def _open_bound(given: Any, inclusive: float, absent: float) -> float:
    """Return an exclusive bound: a number of its own, or draft 4's flag beside the inclusive one."""
    if given is True:
        return inclusive
    return absent if given is None or given is False else float(given)
