"""The configuration's reference for people and for editors, made from the models and their comments.

``python -m airi.config.reference`` prints docs/configuration.md, with ``--schema`` the JSON Schema;
``scripts/docs-configuration`` writes both, and a test keeps them current.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.fields import FieldInfo

from airi.config import kinds, units
from airi.config.kinds import API_VERSION, KINDS, AnyResource

TEXT = Path(__file__).with_name("configuration.md")
"""What is written by hand, above the generated part."""
_ENVELOPE = ("apiVersion", "kind", "metadata")
_DURATION, _MONEY = (get_args(kind)[1] for kind in (units.Milliseconds, units.UsdMicros))
_NAMED = {
    kinds.SecretReference: "`${env:NAME}` or `${file:PATH}`",
    kinds.Name: "name",
    kinds.Dialect: "`openai`, `anthropic` or `litellm:PROVIDER`",
}
_PATTERNS = {get_args(kind)[1].metadata[0].pattern: text for kind, text in _NAMED.items()}
_SIMPLE = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema (2020-12) of one document of any kind."""
    either = Annotated[AnyResource, Field(discriminator="kind")]
    schema = TypeAdapter(either).json_schema(by_alias=True, mode="validation")
    for kind in KINDS:
        schema["$defs"][kind]["required"] = sorted({*schema["$defs"][kind].get("required", []), *_ENVELOPE})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"AIRI configuration ({API_VERSION})",
        **schema,
    }


def markdown() -> str:
    """Return docs/configuration.md."""
    comments = _comments()
    parts = [TEXT.read_text().rstrip(), ""]
    for name, kind in KINDS.items():
        parts += [f"### {name}", "", _first_paragraph(kind), ""]
        if name == "Workflow":
            parts += ["See [workflows](workflows.md) for its body.", ""]
            continue
        parts += [*_table(_rows(kind, "", comments)), ""]
    return "\n".join(parts).rstrip() + "\n"


def _rows(model: type[BaseModel], prefix: str, comments: dict[tuple[str, str], str]) -> list[tuple[str, ...]]:
    """Return key, type, default and meaning of each field, nested mappings right below their key."""
    rows: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        if not prefix and key in _ENVELOPE:
            continue
        inner, form = _inside(field)
        rows.append((f"{prefix}{key}", form, _default(field, inner), _comment(model, name, inner, comments)))
        if inner is not None:
            suffix = {"list": "[].", "mapping of name to mapping": ".NAME."}.get(form, ".")
            rows += _rows(inner, f"{prefix}{key}{suffix}", comments)
    return rows


def _inside(field: FieldInfo) -> tuple[type[BaseModel] | None, str]:
    """Return the model inside a field, if it has one, and the field's form in words."""
    if _DURATION in field.metadata:
        return None, "duration (`30s`)"
    if _MONEY in field.metadata:
        return None, "US dollars"
    for item in field.metadata:
        text = _PATTERNS.get(getattr(item, "pattern", None) or "")
        if text:
            return None, text
    model, form = _form(field.annotation)
    return model, form


def _form(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    for known, text in _NAMED.items():
        if annotation is known or annotation == known:
            return None, text
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if arguments[1] in (_DURATION, _MONEY):
            return None, "duration (`30s`)" if arguments[1] is _DURATION else "US dollars"
        return _form(arguments[0])
    if origin in (Union, UnionType):
        return _form(next(item for item in arguments if item is not type(None)))
    if origin is Literal:
        return None, " or ".join(f"`{item}`" for item in arguments)
    if origin is list:
        model, form = _form(arguments[0])
        return model, "list" if model else f"list of {form}"
    if origin is dict:
        model, form = _form(arguments[1])
        return model, "mapping of name to " + ("mapping" if model else form)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, "mapping"
    return None, _SIMPLE[annotation]


def _default(field: FieldInfo, inner: type[BaseModel] | None) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", [], {}) or (inner is not None and isinstance(value, BaseModel)):
        return ""
    if _DURATION in field.metadata:
        return f"`{_duration(value)}`"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _duration(milliseconds: int) -> str:
    return f"{milliseconds // 1_000}s" if milliseconds % 1_000 == 0 else f"{milliseconds}ms"


def _comment(
    model: type[BaseModel], name: str, inner: type[BaseModel] | None, comments: dict[tuple[str, str], str]
) -> str:
    for base in model.__mro__:
        found = comments.get((base.__name__, name))
        if found:
            return found
    return _first_paragraph(inner) if inner is not None else ""


def _comments() -> dict[tuple[str, str], str]:
    """Return the string below each field of each model: the models' own way to say what a field means."""
    found: dict[tuple[str, str], str] = {}
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.iter_modules(kinds.__path__, f"{kinds.__name__}.")
    ]
    nodes = [node for module in modules for node in ast.parse(inspect.getsource(module)).body]
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[node.name, field.target.id] = _plain(str(text.value.value))
    return found


def _first_paragraph(model: type[BaseModel]) -> str:
    return _plain((model.__doc__ or "").split("\n\n")[0])


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {form} | {default} | {meaning} |" for key, form, default, meaning in rows]
    return lines


def main(arguments: list[str]) -> None:
    """Print the reference, or with ``--schema`` the JSON Schema."""
    text = json.dumps(json_schema(), indent=2) + "\n" if "--schema" in arguments else markdown()
    sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
