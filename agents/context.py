"""What the expressions of a run see: its inputs, its finished steps, itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Row

from agents import prompts, templates
from agents.definition import Definition, Step
from agents.store import RunTransaction


def references(value: Any) -> frozenset[str]:
    """Steps that a value looks at (perhaps a few more), in ``${{ }}`` and in prompts, however deep."""
    found: set[str] = set()
    if isinstance(value, str):
        found = templates.step_references(value)
        if "${{" not in value and ("{{" in value or "{%" in value):
            found |= prompts.step_references(value)
    elif isinstance(value, Mapping):
        found = found.union(*map(references, value.values()))
    elif isinstance(value, list | tuple):
        found = found.union(*map(references, value))
    return frozenset(found)


def to_schedule(definition: Definition, step: Step) -> frozenset[str]:
    """Steps whose outputs are needed to decide about ``step``: its ``if``, its items, its question."""
    key = ("schedule", step.id)
    if key not in definition.references:
        found: frozenset[str] = frozenset()
        if step.if_ is not None:
            found |= templates.condition_references(step.if_)
        if step.for_ is not None:
            found |= references(step.for_.items)
        if step.wait is not None and step.wait.approval is not None:
            found |= references(step.wait.approval.message)
        definition.references[key] = found
    return definition.references[key]


def to_execute(definition: Definition, step: Step) -> frozenset[str]:
    """Steps whose outputs the work of ``step`` needs."""
    key = ("execute", step.id)
    if key not in definition.references:
        definition.references[key] = references(step.with_)
    return definition.references[key]


def values(
    tx: RunTransaction, definition: Definition, rows: Mapping[str, Row[Any]], wanted: Iterable[str]
) -> dict[str, Any]:
    """The variables of an expression that looks at the steps ``wanted``."""
    run = tx.run
    return {
        "inputs": tx.load(run.inputs_ref),
        "steps": {step_id: _outcome(tx, rows.get(step_id), tx.new_steps.get(step_id)) for step_id in wanted},
        "run": {"id": run.id, "workflow": run.workflow, "trace_id": run.trace_id},
        "tenant": {"id": run.tenant, "team": run.team},
        "workflow": {"name": definition.name, "id": definition.id},
    }


def _outcome(tx: RunTransaction, row: Row[Any] | None, new: Mapping[str, Any] | None) -> dict[str, Any]:
    """A finished step as expressions see it. A skipped one has the output ``null``."""
    if row is None:
        state = new["state"] if new is not None else "pending"
        kind = new["kind"] if new is not None else ""
        ref = new["output_ref"] if new is not None else None
    else:
        state, kind, ref = row.state, row.kind, row.output_ref
    if kind == "for" and row is not None and state == "succeeded":
        outputs, errors = joined(tx, row.path)
        return {"state": state, "output": outputs, "outputs": outputs, "errors": errors}
    if kind == "for":
        return {"state": state, "output": [], "outputs": [], "errors": []}
    return {"state": state, "output": tx.load(ref)}


def joined(tx: RunTransaction, path: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """The outputs of a fan-out's items in order (``null`` for a failed one), and its errors."""
    outputs: list[Any] = []
    errors: list[dict[str, Any]] = []
    for child in tx.children(path):
        outputs.append(tx.load(child.output_ref))
        if child.state == "failed":
            errors.append({"index": child.position, **msgspec.json.decode(child.error)})
    return outputs, errors
