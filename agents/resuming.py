"""Going on after a person has looked: settling steps that need review, bringing failed runs back."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Row, delete, select, update

from agents.definition import Definition
from agents.errors import RunStateError
from agents.scheduling import advance, as_json, child_ended, error_of
from agents.schema import effects, groups, steps
from agents.store import RunTransaction

Action = Literal["retry", "done", "fail"]


def resume(
    tx: RunTransaction, definition: Definition, path: str | None, action: Action, output: Any, by: str
) -> list[str]:
    """Settle steps that need review, or try a failed run's failed steps again; return the steps' paths.

    ``done``: the effect did happen, ``output`` is its result. ``fail``: it did not, and the step fails.
    ``retry``: it did not (or may happen again): do it. Raises :class:`RunStateError`.
    """
    if tx.state in ("completed", "cancelled", "stopping"):
        raise RunStateError(f"a run that is {tx.state} cannot be resumed")
    failed = tx.state == "failed"
    if failed and action != "retry":
        raise RunStateError("a failed run can only be resumed with action 'retry'")
    rows = _stuck(tx, "failed" if failed else "needs_review", path)
    for row in rows:
        tx.event("step.resolved", row.path, action=action, by=by)
        _settle(tx, definition, row, action, output)
    if failed:
        _revive(tx, definition)
    tx.forget_reads()
    advance(tx, definition)
    return [row.path for row in rows]


def _stuck(tx: RunTransaction, state: str, path: str | None) -> list[Row[Any]]:
    wanted = select(steps).where(steps.c.run_id == tx.run.id, steps.c.state == state, steps.c.kind != "for")
    if path is not None:
        wanted = wanted.where(steps.c.path == path)
    # A failed item of a fan-out that collects errors is a result, not an obstacle.
    tops = tx.top_steps()
    rows = [
        row
        for row in tx.connection.execute(wanted.order_by(steps.c.path))
        if row.parent is None or tops[row.parent].state != "succeeded"
    ]
    if not rows and (path is not None or state == "needs_review"):
        raise RunStateError(f"no such step of this run is {state.replace('_', ' ')}")
    return rows


def _settle(tx: RunTransaction, definition: Definition, row: Row[Any], action: Action, output: Any) -> None:
    open_effects = update(effects).where(
        effects.c.run_id == tx.run.id, effects.c.path == row.path, effects.c.state.in_(("review", "intent"))
    )
    if row.kind == "approval" and row.started_at is not None:
        tx.change_step(row.path, state="waiting", error=None, finished_at=None)
    elif row.attempt == 0:  # it failed before it began: its condition or its items
        tx.connection.execute(delete(steps).where(steps.c.run_id == tx.run.id, steps.c.path == row.path))
    elif action == "fail":
        tx.connection.execute(open_effects.values(state="failed", finished_at=tx.now))
        error = error_of("ambiguous", "a person decided that the effect did not happen")
        tx.change_step(row.path, state="failed", error=as_json(error), finished_at=tx.now)
        if row.parent is not None:
            child_ended(tx, definition, row.parent, "failed", error)
    else:
        done = {"state": "done", "result_ref": tx.dump(output)} if action == "done" else {"state": "failed"}
        tx.connection.execute(open_effects.values(finished_at=tx.now, **done))
        _again(tx, row)


def _again(tx: RunTransaction, row: Row[Any]) -> None:
    """Make a step ready under a new fence, with its attempts uncounted."""
    fence = row.fence + 1
    tx.change_step(row.path, state="ready", failures=0, crashes=0, error=None, finished_at=None, fence=fence)
    tx.publish(row.path, fence)


def _revive(tx: RunTransaction, definition: Definition) -> None:
    """Bring a failed run back: what was cancelled with it is scheduled anew."""
    here = steps.c.run_id == tx.run.id
    cancelled = select(steps).where(here, steps.c.state == "cancelled", steps.c.kind != "for")
    for row in tx.connection.execute(cancelled).all():
        if row.parent is not None:
            _again(tx, row)
        else:
            tx.connection.execute(delete(steps).where(here, steps.c.path == row.path))
            tx.set(steps_started=max(0, tx.get("steps_started") - 1))
    stopped = select(steps).where(here, steps.c.kind == "for", steps.c.state.in_(("failed", "cancelled")))
    for row in tx.connection.execute(stopped).all():
        children = tx.children(row.path)
        ended = sum(1 for child in children if child.state == "succeeded")
        tx.change_step(
            row.path, state="joining", error=None, finished_at=None, remaining=row.total - ended,
            launched=len(children),
        )  # fmt: skip
    group = tx.run.concurrency_group
    if group is not None:
        tx.connection.execute(update(groups).where(groups.c.name == group).values(active=groups.c.active + 1))
    wall = definition.body.budget.wall
    if wall is not None:
        tx.timer("", "wall", wall)
    tx.set(state="running", outcome=None, error=None, finished_at=None)
    tx.event("run.resumed")
