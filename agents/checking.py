"""From a document to a :class:`Definition`: every fault with its place and, where there is one, a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema
from pydantic import BaseModel, ValidationError

from agents import prompts, templates
from agents.definition import (
    OPTIONS,
    AgentOptions,
    Definition,
    LlmOptions,
    ModelOptions,
    Step,
    ToolOptions,
    WorkflowBody,
)
from agents.step_order import circle, in_order
from agents.templates import Reference
from airi.config.kinds import Workflow
from airi.errors import ConfigError

Where = Callable[..., str]
"""``where("steps", 0, "id")`` gives the text before ``: what is wrong``, with file and line when they are known."""
_HEAD = ("apiVersion", "api_version", "kind", "metadata")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What workflows may name; ``None`` means "not known here, do not check"."""

    models: frozenset[str] | None = None
    tools: frozenset[str] | None = None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to put behind a message, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def plain_where(name: str) -> Where:
    """A ``where`` for documents without known lines."""
    return lambda *path: f"Workflow/{name}: {'.'.join(map(str, path))}"


def parse(
    resource: Workflow | Mapping[str, Any], where: Where | None = None, catalogue: Catalogue | None = None
) -> Definition:
    """Check a workflow and return its definition; raise :class:`ConfigError` with all faults."""
    document = (
        resource.model_dump(mode="json", by_alias=True) if isinstance(resource, Workflow) else dict(resource)
    )
    name = str(document.get("metadata", {}).get("name", "?"))
    check = _Check(where or plain_where(name), catalogue or Catalogue())
    body_document = {key: value for key, value in document.items() if key not in _HEAD}
    try:
        body = WorkflowBody.model_validate(body_document)
    except ValidationError as error:
        check.pydantic(error, WorkflowBody, ())
        raise ConfigError(check.problems) from error
    order = check.workflow(body)
    if check.problems:
        raise ConfigError(check.problems)
    description = str(document.get("metadata", {}).get("description", ""))
    return Definition(name, document, body, order, description, {step.id: step for step in body.steps})


def problems(resource: Workflow, where: Where, catalogue: Catalogue | None = None) -> list[str]:
    """The faults of a workflow: the configuration's validator for this kind."""
    try:
        parse(resource, where, catalogue)
    except ConfigError as error:
        return error.problems
    return []


@dataclass
class _Check:
    where: Where
    catalogue: Catalogue
    problems: list[str] = field(default_factory=list)
    inputs: set[str] | None = None
    """The inputs that the workflow declares; ``None`` where it leaves open what they are."""

    def add(self, path: Sequence[str | int], message: str) -> None:
        self.problems.append(f"{self.where(*path)}: {message}")

    def pydantic(self, error: ValidationError, model: type[BaseModel], base: tuple[str | int, ...]) -> None:
        """Turn pydantic's faults into ours, with a suggestion for a key that is not known."""
        for fault in error.errors(include_url=False, include_context=False):
            path = (*base, *(part for part in fault["loc"]))
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "extra_forbidden":
                known = _keys_at(model, fault["loc"][:-1])
                message = f"unknown key{did_you_mean(str(fault['loc'][-1]), known)}"
            elif fault["type"] == "missing":
                message = "is required"
            elif fault["type"] == "literal_error":
                message += did_you_mean(str(fault["input"]), re.findall(r"'([^']+)'", message))
            self.add(path, message)

    def workflow(self, body: WorkflowBody) -> tuple[str, ...]:
        """Check everything that no single model can; return the order of the steps."""
        self.schema(("inputs",), body.inputs)
        if not body.inputs.get("additionalProperties", False) and "patternProperties" not in body.inputs:
            declared = body.inputs.get("properties")
            self.inputs = set(declared) if isinstance(declared, dict) and declared else None
        ids = [step.id for step in body.steps]
        for index, step in enumerate(body.steps):
            if step.id in ids[:index]:
                self.add(("steps", index, "id"), f"two steps are called {step.id!r}")
        before = self.ancestors(body.steps, ids)
        for index, step in enumerate(body.steps):
            self.step(step, ("steps", index), before.get(step.id, set()), set(ids))
        names = templates.names_with()
        for key, value in body.outputs.items():
            self.expressions(("outputs", key), value, names, set(ids), set(ids))
        if body.concurrency is not None:
            self.expressions(("concurrency", "group"), body.concurrency.group, names, set(), set(ids))
        return in_order(body.steps)

    def ancestors(self, steps: Sequence[Step], ids: list[str]) -> dict[str, set[str]]:
        """All steps that each step (transitively) needs; faults for unknown needs and for cycles."""
        needs: dict[str, set[str]] = {}
        for index, step in enumerate(steps):
            for place, need in enumerate(step.needs):
                if need not in ids:
                    self.add(
                        ("steps", index, "needs", place), f"unknown step {need!r}{did_you_mean(need, ids)}"
                    )
            needs[step.id] = {need for need in step.needs if need in ids}
        closed: dict[str, set[str]] = {}
        for index, step in enumerate(steps):
            seen: set[str] = set()
            todo = list(needs[step.id])
            while todo:
                need = todo.pop()
                if need not in seen:
                    seen.add(need)
                    todo.extend(needs[need])
            if step.id in seen:
                cycle = circle(step.id, needs)
                self.add(
                    ("steps", index, "needs"), f"the steps need each other in a circle: {' → '.join(cycle)}"
                )
            closed[step.id] = seen
        return closed

    def step(self, step: Step, at: tuple[str | int, ...], before: set[str], ids: set[str]) -> None:
        """Check the expressions, the options and the names of one step."""
        names = templates.names_with()
        if step.if_ is not None:
            self.outcome((*at, "if"), templates.check_condition(step.if_, names), before, ids)
        if step.for_ is not None:
            self.expressions((*at, "for", "in"), step.for_.items, names, before, ids)
            if isinstance(step.for_.items, str) and not templates.is_expression(step.for_.items):
                self.add((*at, "for", "in"), "must be a list or one ${{ }} expression that gives a list")
            names = templates.names_with(step.for_.each, "index")
        if step.wait is not None:
            if step.with_:
                self.add((*at, "with"), "goes with 'call', not with 'wait'")
            if step.wait.approval is not None:
                self.prompt(
                    (*at, "wait", "approval", "message"), step.wait.approval.message, names, before, ids
                )
            return
        assert step.call is not None
        model = OPTIONS[step.call]
        try:
            options = model.model_validate(step.with_)
        except ValidationError as error:
            self.pydantic(error, model, (*at, "with"))
            return
        self.options(options, (*at, "with"), names, before, ids)

    def options(
        self,
        options: BaseModel,
        at: tuple[str | int, ...],
        names: tuple[str, ...],
        before: set[str],
        ids: set[str],
    ) -> None:
        """Check what stands under ``with``."""
        if isinstance(options, ModelOptions):
            self.model_name((*at, "model"), options.model, names, before, ids)
            self.prompt((*at, "system"), options.system, names, before, ids)
            if options.output_schema is not None:
                self.schema((*at, "output_schema"), options.output_schema)
        if isinstance(options, LlmOptions):
            if options.prompt is not None:
                self.prompt((*at, "prompt"), options.prompt, names, before, ids)
            else:
                self.expressions((*at, "messages"), options.messages, names, before, ids)
        elif isinstance(options, AgentOptions):
            if templates.is_expression(options.input):
                self.expressions((*at, "input"), options.input, names, before, ids)
            else:
                self.prompt((*at, "input"), options.input, names, before, ids)
            for index, tool in enumerate(options.tools):
                self.tool_name((*at, "tools", index), tool)
        elif isinstance(options, ToolOptions):
            self.tool_name((*at, "tool"), options.tool)
            for key, value in options.args.items():
                self.expressions((*at, "args", key), value, names, before, ids)

    def model_name(
        self, at: tuple[str | int, ...], name: str, names: tuple[str, ...], before: set[str], ids: set[str]
    ) -> None:
        known = self.catalogue.models
        if "${{" in name:
            self.expressions(at, name, names, before, ids)
        elif known is not None and name not in known and not name.startswith("workflow/"):
            self.add(at, f"unknown model {name!r}{did_you_mean(name, known)}")

    def tool_name(self, at: tuple[str | int, ...], name: str) -> None:
        known = self.catalogue.tools
        if known is not None and name not in known:
            self.add(at, f"unknown tool {name!r}{did_you_mean(name, known)}")

    def schema(self, at: tuple[str | int, ...], schema: dict[str, Any]) -> None:
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            self.add((*at, *error.absolute_path), f"not a JSON Schema: {error.message[:200]}")

    def expressions(
        self, at: tuple[str | int, ...], value: Any, names: tuple[str, ...], before: set[str], ids: set[str]
    ) -> None:
        for place, found in templates.check(value, names):
            self.outcome((*at, *place), found, before, ids)

    def outcome(
        self, at: tuple[str | int, ...], found: str | set[Reference], before: set[str], ids: set[str]
    ) -> None:
        """Report what is wrong with an expression, or the steps that it must not look at."""
        if isinstance(found, str):
            self.add(at, f"expression: {found}")
        else:
            self.references(at, found, before, ids)

    def prompt(
        self, at: tuple[str | int, ...], text: str, names: tuple[str, ...], before: set[str], ids: set[str]
    ) -> None:
        fault = prompts.problem(text, names)
        if fault is not None:
            self.add(at, f"prompt: {fault}")
        else:
            self.references(at, prompts.references(text), before, ids)

    def references(
        self, at: tuple[str | int, ...], used: set[Reference], before: set[str], ids: set[str]
    ) -> None:
        for base, name in sorted(used):
            if base == "inputs":
                if self.inputs is not None and name not in self.inputs:
                    hint = did_you_mean(name, self.inputs)
                    self.add(at, f"unknown input {name!r}{hint}; the workflow's 'inputs' do not declare it")
            elif name in before:
                continue
            elif name in ids:
                self.add(at, f"looks at step {name!r} without needing it; add {name!r} to 'needs'")
            else:
                self.add(at, f"unknown step {name!r}{did_you_mean(name, ids)}")


def _keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the model knows at a path of an error (as far as the path leads through plain models)."""
    for part in path:
        if isinstance(part, int):
            continue
        found = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        inner = _model_in(found.annotation) if found is not None else None
        if inner is None:
            return []
        model = inner
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, getattr(annotation, "__args__", ()))), None)


def rule_of(fault: jsonschema.ValidationError) -> str:
    """What a schema demands, without the value that broke it."""
    if fault.validator == "required":
        demanded: Any = fault.validator_value
        missing = [name for name in demanded if name not in _keys(fault.instance)]
        return f"{missing[0]!r} is required"
    if fault.validator == "additionalProperties":
        return "has a property that the schema does not know"
    return f"must satisfy {fault.validator}: {str(fault.validator_value)[:200]}"


def _keys(instance: Any) -> list[str]:
    return list(instance) if isinstance(instance, dict) else []
