"""Finding and calling tools by name, for a tenant, whatever kind they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
from jsonschema.protocols import Validator

from agents.checking import rule_of
from agents.definition import EffectClass
from agents.errors import AmbiguousEffect, StepFailed, ToolError, ToolRefusedError
from agents.tools.functions import FUNCTIONS, FunctionTool, Registry, ToolContext
from airi.config.document import ConfigDocument
from airi.config.kinds import HttpTool
from airi.config.kinds import Tool as ToolResource
from airi.secrets import Secret

if TYPE_CHECKING:
    from agents.tools.http import HttpTools

SecretsOf = Callable[[str, HttpTool], Mapping[str, Secret]]
"""Reveals the secret headers of the HTTP tool of a name (blocking)."""


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A tool as a step or a model sees it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    effect_class: EffectClass
    function: FunctionTool | None
    http: HttpTool | None

    @property
    def in_line(self) -> bool:
        """Whether it can be called in the thread that drives a run, without a record of its intent."""
        function = self.function
        return function is not None and not function.is_async and self.effect_class == "idempotent"


class ToolBox:
    """The tools of this process: those of the configuration, then the registered functions."""

    def __init__(
        self,
        document: Callable[[], ConfigDocument],
        secrets_of: SecretsOf = lambda _name, _tool: {},
        registry: Registry = FUNCTIONS,
        newest: Callable[[], ConfigDocument] | None = None,
    ) -> None:
        """``newest``: where to look for a tool that ``document`` lacks, because that may be older."""
        self._document = document
        self._newest = newest or document
        self._secrets_of = secrets_of
        self._registry = registry

    @cached_property
    def http(self) -> HttpTools:
        """The connections to HTTP tools; a process that calls none does without the client."""
        from agents.tools.http import HttpTools

        return HttpTools()

    def names(self) -> frozenset[str]:
        """All tools that a workflow may name."""
        return frozenset(
            {found.name for found in self._registry}
            | {resource.metadata.name for resource in self._document().all(ToolResource)}
        )

    def find(self, name: str, tenant: str, effect_class: EffectClass | None = None) -> BoundTool:
        """The tool of a name; :class:`StepFailed` when the tenant has none."""
        resource = self._document().get(ToolResource, name)
        function = self._registry.named(name) if resource is None else None
        if resource is None and function is None:
            resource = self._newest().get(ToolResource, name)
        if resource is None:
            if function is None:
                raise StepFailed("tool", f"there is no tool {name!r}")
            return BoundTool(
                name,
                function.description,
                function.input_schema,
                effect_class or function.effect_class,
                function,
                None,
            )
        if not any(fnmatchcase(tenant, pattern) for pattern in resource.tenants):
            raise StepFailed("tool", f"there is no tool {name!r}")
        description = resource.metadata.description
        if resource.http is not None:
            return BoundTool(
                name, description, resource.input_schema, effect_class or resource.effect, None, resource.http
            )
        function = self._registry.referenced(resource.function or "")
        if function is None:
            raise StepFailed(
                "tool", f"tool {name!r}: no function {resource.function!r} is registered in this worker"
            )
        explicit = "input_schema" in resource.model_fields_set
        return BoundTool(
            name, description or function.description, resource.input_schema if explicit else function.input_schema,
            effect_class or (resource.effect if "effect" in resource.model_fields_set else function.effect_class),
            function, None,
        )  # fmt: skip

    def check(self, tool: BoundTool, args: Any) -> dict[str, Any]:
        """Arguments that satisfy the tool's schema; :class:`ToolRefusedError` saying what is wrong, without values."""
        if not isinstance(args, dict):
            raise ToolRefusedError(f"{tool.name}: the arguments must be an object")
        fault = next(_validator(msgspec.json.encode(tool.input_schema)).iter_errors(args), None)
        if fault is not None:
            place = ".".join(map(str, fault.absolute_path)) or "the arguments"
            raise ToolRefusedError(f"{tool.name}: {place}: {rule_of(fault)}")
        return args

    def call_in_line(self, tool: BoundTool, args: dict[str, Any], context: ToolContext) -> Any:
        """Call a function in this thread."""
        assert tool.function is not None
        return plain(tool.name, _guarded(tool, tool.function.arguments(args, context)))

    async def call(
        self, tool: BoundTool, args: dict[str, Any], context: ToolContext, in_thread: Callable[..., Any]
    ) -> Any:
        """Call a tool; functions that are not ``async`` run in a thread."""
        if tool.http is not None:
            secrets = await in_thread(self._secrets_of, tool.name, tool.http)
            unsafe = tool.effect_class == "unsafe"
            return await self.http.call(tool.http, args, context, secrets, unsafe=unsafe)
        assert tool.function is not None
        if not tool.function.is_async:
            return await in_thread(self.call_in_line, tool, args, context)
        try:
            return plain(tool.name, await tool.function.function(**tool.function.arguments(args, context)))
        except (ToolError, StepFailed, TimeoutError):
            raise
        except Exception as error:  # somebody's function may raise anything: it becomes a failure of the step
            raise _failure(tool, error) from error

    async def reconcile(self, tool: BoundTool, key: str, in_thread: Callable[..., Any]) -> Any:
        """What the tool knows of a key: its result, or ``None`` when it was not applied."""
        assert tool.function is not None
        assert tool.function.reconcile is not None
        found = await in_thread(tool.function.reconcile, key)
        return plain(tool.name, await found if inspect.isawaitable(found) else found)


def _guarded(tool: BoundTool, arguments: dict[str, Any]) -> Any:
    assert tool.function is not None
    try:
        return tool.function.function(**arguments)
    except (ToolError, StepFailed):
        raise
    except Exception as error:  # as above
        raise _failure(tool, error) from error


def _failure(tool: BoundTool, error: Exception) -> StepFailed:
    """A function raised something that it did not declare: a person's code can raise anything."""
    said = f"{tool.name}: the function raised {type(error).__name__}"
    if tool.effect_class == "unsafe":
        return AmbiguousEffect(f"{said}; raise ToolError when nothing was done")
    return StepFailed("tool", said)


def plain(name: str, value: Any) -> Any:
    """A tool's result as plain JSON data."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError) as error:
        raise ToolError(f"{name}: the result cannot be written as JSON") from error


@lru_cache(maxsize=512)
def _validator(schema: bytes) -> Validator:
    return jsonschema.Draft202012Validator(msgspec.json.decode(schema))
