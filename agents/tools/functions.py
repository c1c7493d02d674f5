"""Function tools: ordinary Python functions with a decorator.

    from agents.tools import ToolContext, tool

    @tool("crm.note", effect="keyed")
    def note(customer: str, text: str, context: ToolContext) -> dict:
        '''Write a note into the CRM.'''
        return crm.post(customer, text, idempotency_key=context.key)

The arguments' schema comes from the signature; a parameter annotated :class:`ToolContext` is filled in by AIRI and
not shown to models. Functions may be ``async``. Modules are loaded from ``AIRI_TOOLS_PATH`` and from nowhere else.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, create_model

from agents.definition import EffectClass
from airi.errors import ConfigError

ENVIRONMENT = "AIRI_TOOLS_PATH"
_DEFAULTS = ("tools.py", "tools", "examples/tools.py")


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a function may know of the call: hand ``key`` on as the idempotency key of what it does."""

    key: str
    tenant: str
    run_id: str
    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A registered function."""

    name: str
    reference: str
    """``module:function``, as a Tool resource names it."""
    description: str
    input_schema: dict[str, Any]
    effect_class: EffectClass
    function: Callable[..., Any]
    reconcile: Callable[[str], Any] | None
    is_async: bool
    context_parameter: str | None

    def arguments(self, args: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """The keyword arguments of the function."""
        return {**args, self.context_parameter: context} if self.context_parameter else dict(args)


class Registry:
    """The functions of this process, by name and by reference."""

    def __init__(self) -> None:
        self._by_name: dict[str, FunctionTool] = {}
        self._by_reference: dict[str, FunctionTool] = {}

    def add(self, found: FunctionTool) -> None:
        """Register; a later function of the same name replaces an earlier one."""
        self._by_name[found.name] = found
        self._by_reference[found.reference] = found

    def named(self, name: str) -> FunctionTool | None:
        """The function with this tool name."""
        return self._by_name.get(name)

    def referenced(self, reference: str) -> FunctionTool | None:
        """The function that ``module:function`` means."""
        return self._by_reference.get(reference)

    def __iter__(self) -> Iterator[FunctionTool]:
        return iter(self._by_name.values())


FUNCTIONS = Registry()


def tool(
    name: str | None = None,
    *,
    effect: EffectClass = "unsafe",
    description: str | None = None,
    reconcile: Callable[[str], Any] | None = None,
    registry: Registry = FUNCTIONS,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a tool.

    ``effect`` says what a repetition does: ``idempotent`` (nothing more: also right for functions without any
    outside effect), ``keyed`` (the other side recognises :attr:`ToolContext.key`), ``reconcilable`` (``reconcile``
    takes the key and returns the result, or ``None`` if it was not applied) or ``unsafe``, the default.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        schema, context_parameter = _schema(function)
        registry.add(
            FunctionTool(
                name=name or function.__name__, reference=f"{function.__module__}:{function.__name__}",
                description=description or inspect.cleandoc(function.__doc__ or ""), input_schema=schema,
                effect_class=effect, function=function, reconcile=reconcile,
                is_async=inspect.iscoroutinefunction(function), context_parameter=context_parameter,
            )
        )  # fmt: skip
        return function

    return register


def _schema(function: Callable[..., Any]) -> tuple[dict[str, Any], str | None]:
    """JSON Schema of a function's arguments, and the name of the parameter that takes the context."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    context_parameter = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(
                f"{function.__name__}: a tool's parameters have names; *args and **kwargs cannot be used"
            )
        hint = hints.get(parameter.name, Any)
        if hint is ToolContext:
            context_parameter = parameter.name
        else:
            fields[parameter.name] = (
                hint,
                ... if parameter.default is parameter.empty else parameter.default,
            )
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    return TypeAdapter(model).json_schema(), context_parameter


def tool_files() -> list[Path]:
    """The Python files that ``AIRI_TOOLS_PATH`` names (folders: all of their ``*.py``)."""
    text = os.environ.get(ENVIRONMENT)
    names = (
        text.split(os.pathsep) if text is not None else [name for name in _DEFAULTS if Path(name).exists()]
    )
    files: list[Path] = []
    for name in filter(None, names):
        path = Path(name).absolute()
        if not path.exists():
            raise ConfigError([f"{ENVIRONMENT}: {path} does not exist"])
        files.extend(sorted(path.glob("*.py")) if path.is_dir() else [path])
    return files


def load_tools(files: list[Path] | None = None) -> list[str]:
    """Import the tool files, so that their functions are registered; return the names of the modules.

    A module is called as its file is (``tools`` for ``tools.py``). Raises :class:`ConfigError` naming the file.
    """
    loaded: list[str] = []
    for file in tool_files() if files is None else files:
        specification = importlib.util.spec_from_file_location(file.stem, file)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        before = sys.modules.get(file.stem)
        sys.modules[file.stem] = module  # so that annotations of the file can be resolved while it loads
        try:
            specification.loader.exec_module(module)
        except Exception as error:  # a person's file can raise anything; they need to hear which one it was
            raise ConfigError([f"{file}: cannot be loaded: {type(error).__name__}: {error}"]) from error
        finally:
            if before is not None:
                sys.modules[file.stem] = before
        loaded.append(file.stem)
    return loaded
