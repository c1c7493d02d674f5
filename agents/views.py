"""Runs as people and programs see them: plain data for JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from agents.definition import Definition
from agents.schema import effects, steps
from agents.values import Values
from airi.errors import AiriError

_SUMMARY = (
    "id", "workflow", "definition_id", "tenant", "team", "key_id", "state", "outcome", "trace_id", "seq", "created_at",
    "started_at", "finished_at", "budget_usd_micros", "spent_usd_micros", "held_usd_micros", "budget_tokens",
    "spent_tokens", "steps_started",
)  # fmt: skip
_STEP = (
    "path", "step_id", "kind", "state", "attempt", "failures", "crashes", "total", "remaining", "cost_usd_micros",
    "tokens", "created_at", "started_at", "finished_at",
)  # fmt: skip
_EFFECT = (
    "key",
    "path",
    "kind",
    "name",
    "effect_class",
    "state",
    "calls",
    "cost_usd_micros",
    "tokens",
    "created_at",
)


def summary(row: Row[Any]) -> dict[str, Any]:
    """A run in a list: no content, only facts."""
    return {
        "object": "run",
        **{name: getattr(row, name) for name in _SUMMARY},
        "error": None if row.error is None else msgspec.json.decode(row.error),
    }


def full(connection: Connection, values: Values, row: Row[Any], definition: Definition) -> dict[str, Any]:
    """A run with its inputs, outputs, steps (also those that have not begun) and whatever waits for a person."""
    step_rows = list(connection.execute(select(steps).where(steps.c.run_id == row.id)))
    reviews = connection.execute(
        select(effects).where(effects.c.run_id == row.id, effects.c.state == "review").order_by(effects.c.key)
    )
    shown = _steps(connection, values, row.tenant, definition, step_rows)
    return {
        **summary(row),
        "inputs": _content(connection, values, row.tenant, row.inputs_ref),
        "outputs": _content(connection, values, row.tenant, row.outputs_ref),
        "steps": shown,
        "approvals": [
            {"step": step["path"], "role": step["approval"]["role"], "message": step["approval"]["message"]}
            for step in shown
            if step["kind"] == "approval" and step["state"] == "waiting"
        ],
        "reviews": [{name: getattr(effect, name) for name in _EFFECT} for effect in reviews],
    }


def effects_of(connection: Connection, run_id: str) -> list[dict[str, Any]]:
    """Every effect of a run."""
    rows = connection.execute(
        select(effects).where(effects.c.run_id == run_id).order_by(effects.c.created_at)
    )
    return [{name: getattr(row, name) for name in _EFFECT} for row in rows]


def step_output(connection: Connection, values: Values, run: Row[Any], path: str) -> Any:
    """The output of one step, or ``None``."""
    ref = connection.scalar(select(steps.c.output_ref).where(steps.c.run_id == run.id, steps.c.path == path))
    return _content(connection, values, run.tenant, ref)


def _steps(
    connection: Connection, values: Values, tenant: str, definition: Definition, rows: list[Row[Any]]
) -> list[dict[str, Any]]:
    tops = {row.path: row for row in rows if row.parent is None}
    children: dict[str, list[Row[Any]]] = {}
    for row in rows:
        if row.parent is not None:
            children.setdefault(row.parent, []).append(row)
    shown: list[dict[str, Any]] = []
    for step_id in definition.order:
        step = definition.steps[step_id]
        facts = {"needs": list(step.needs), "name": step.name, "call": step.call or "wait"}
        if step_id not in tops:
            shown.append(
                {"path": step_id, "step_id": step_id, "kind": step.kind, "state": "pending", **facts}
            )
            continue
        shown.append({**_step(connection, values, tenant, tops[step_id]), **facts})
        items = sorted(children.get(step_id, ()), key=lambda row: row.position)
        shown.extend(
            {**_step(connection, values, tenant, row), "needs": [], "item": row.position} for row in items
        )
    return shown


def _step(connection: Connection, values: Values, tenant: str, row: Row[Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {name: getattr(row, name) for name in _STEP}
    shown["error"] = None if row.error is None else msgspec.json.decode(row.error)
    if row.kind == "approval":
        detail = msgspec.json.decode(row.detail) if row.detail else {"role": "", "message_ref": None}
        message = _content(connection, values, tenant, detail["message_ref"])
        shown["approval"] = {"role": detail["role"], "message": message or ""}
        shown["decision"] = _content(connection, values, tenant, row.output_ref)
    return shown


def _content(connection: Connection, values: Values, tenant: str, ref: str | None) -> Any:
    """A value; content that has expired does not hide the run."""
    try:
        return values.load(connection, tenant, ref)
    except AiriError as error:
        return {"unavailable": error.code}
