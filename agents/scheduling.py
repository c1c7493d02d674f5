"""``advance``: fold the state of a run into what happens next. Idempotent, under the run's lock, without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from agents import context, prompts, templates
from agents.definition import MAX_ITEMS, Definition, Step
from agents.errors import ErrorClass, StepFailed
from agents.schema import groups, outbox, runs, steps, timers
from agents.states import RUN_ENDED, STEP_MOVES, STEP_SATISFIED
from agents.store import RunTransaction


def advance(tx: RunTransaction, definition: Definition) -> None:
    """Start every step that can start, and end the run when nothing is left."""
    if tx.state in RUN_ENDED or tx.state == "queued":
        return
    rows = tx.top_steps()
    if tx.state == "stopping":
        finish_stop(tx)
        return
    failed = next((row for row in rows.values() if row.state == "failed"), None)
    if failed is not None:
        error = msgspec.json.decode(failed.error)
        stop(tx, "failed", {**error, "step": failed.path})
        return
    states = {path: row.state for path, row in rows.items()}
    for step_id in definition.order:
        step = definition.steps[step_id]
        if step_id in states or any(states.get(need) not in STEP_SATISFIED for need in step.needs):
            continue
        states[step_id] = _activate(tx, definition, step, rows)
        if tx.state == "stopping":
            return
    _conclude(tx, definition, rows, states)


def _activate(tx: RunTransaction, definition: Definition, step: Step, rows: Mapping[str, Row[Any]]) -> str:
    """Create the row of a step whose needs are satisfied; return its state."""
    try:
        values = context.values(tx, definition, rows, context.to_schedule(definition, step))
        if step.if_ is not None and not _truth(templates.evaluate(step.if_, values)):
            tx.add_step(step.id, step.id, step.kind, "skipped", finished_at=tx.now)
            tx.event("step.skipped", step.id)
            return "skipped"
        if step.for_ is not None:
            return _fan_out(tx, definition, step, templates.resolve(step.for_.items, values))
        if step.wait is not None:
            return _wait(tx, step, values)
    except StepFailed as failure:
        error = error_of(failure.error_class, failure.message)
        tx.add_step(step.id, step.id, step.kind, "failed", error=as_json(error), finished_at=tx.now)
        tx.event("step.failed", step.id, **error)
        stop(tx, "failed", {**error, "step": step.id})
        return "failed"
    return _ready(tx, definition, step, step.id, None, None)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise StepFailed("expression", f"'if' must come to true or false, not {type(value).__name__}")
    return value


def _ready(
    tx: RunTransaction,
    definition: Definition,
    step: Step,
    path: str,
    parent: str | None,
    position: int | None,
) -> str:
    """Create a step that a worker can take; fail the run when its budget of steps is used up."""
    started = tx.get("steps_started") + 1
    limit = definition.body.budget.steps
    if limit is not None and started > limit:
        stop(
            tx, "failed", error_of("budget", f"the run's budget of {limit} steps is used up") | {"step": path}
        )
        return "cancelled"
    tx.set(steps_started=started)
    tx.add_step(path, step.id, step.kind, "ready", parent=parent, position=position)
    return "ready"


def _fan_out(tx: RunTransaction, definition: Definition, step: Step, items: Any) -> str:
    assert step.for_ is not None
    if not isinstance(items, list):
        raise StepFailed("expression", f"'for.in' must come to a list, not {type(items).__name__}")
    if len(items) > MAX_ITEMS:
        raise StepFailed("expression", f"'for.in' came to {len(items):,} items; the most is {MAX_ITEMS:,}")
    ended = not items
    parent = tx.add_step(
        step.id, step.id, "for", "succeeded" if ended else "joining", total=len(items), launched=0,
        remaining=len(items), items_ref=tx.dump(items), started_at=tx.now, finished_at=tx.now if ended else None,
    )  # fmt: skip
    tx.event("step.fanned_out", step.id, items=len(items))
    for position in range(min(len(items), step.for_.max_parallel)):
        if _ready(tx, definition, step, f"{step.id}/{position}", step.id, position) != "ready":
            break
        parent["launched"] = position + 1
    return str(parent["state"])


def _wait(tx: RunTransaction, step: Step, values: Mapping[str, Any]) -> str:
    assert step.wait is not None
    approval, duration = step.wait.approval, step.wait.duration
    if approval is not None:
        message = prompts.render(approval.message, values) if approval.message else ""
        detail = as_json({"role": approval.role, "message_ref": tx.dump(message) if message else None})
        tx.add_step(step.id, step.id, "approval", "waiting", detail=detail, started_at=tx.now)
        if approval.timeout is not None:
            tx.timer(step.id, "approval", approval.timeout)
        tx.event("step.waiting", step.id, wait="approval", role=approval.role)
    else:
        assert duration is not None
        tx.add_step(step.id, step.id, "duration", "waiting", started_at=tx.now)
        tx.timer(step.id, "duration", duration)
        tx.event("step.waiting", step.id, wait="duration", ms=duration)
    return "waiting"


def child_ended(tx: RunTransaction, definition: Definition, parent_path: str, state: str, error: Any) -> bool:
    """Count an item of a fan-out that has ended and launch the next; return whether the fan-out has ended."""
    parent = tx.step(parent_path)
    if parent is None or parent.state != "joining":
        return False
    tx.items_refs[parent_path] = parent.items_ref
    step = definition.steps[parent.step_id]
    assert step.for_ is not None
    remaining, launched = parent.remaining - 1, parent.launched
    changes: dict[str, Any] = {"remaining": remaining}
    if state == "failed" and step.for_.on_error == "fail":
        changes |= {"state": "failed", "error": as_json(error), "finished_at": tx.now}
        tx.event("step.failed", parent.path, **error)
    elif remaining == 0:
        changes |= {"state": "succeeded", "finished_at": tx.now}
        tx.event("step.succeeded", parent.path)
    elif launched < parent.total:
        item = f"{parent.path}/{launched}"
        if _ready(tx, definition, step, item, parent.path, launched) != "ready":
            return True  # the run has been stopped: its budget of steps is used up
        changes["launched"] = launched + 1
    tx.change_step(parent.path, **changes)
    return "state" in changes


def _conclude(
    tx: RunTransaction, definition: Definition, rows: Mapping[str, Row[Any]], states: Mapping[str, str]
) -> None:
    """Decide what the run as a whole is doing now."""
    living = set(states.values()) - STEP_SATISFIED
    if living & STEP_MOVES:
        if tx.state != "running":
            tx.set(state="running")
        return
    if living:
        state = "needs_review" if "needs_review" in living else "waiting"
        if tx.state != state:
            tx.set(state=state)
            tx.event(f"run.{state}")
        return
    try:
        wanted = context.references(definition.body.outputs)
        outputs = templates.resolve(definition.body.outputs, context.values(tx, definition, rows, wanted))
    except StepFailed as failure:
        stop(tx, "failed", error_of(failure.error_class, f"outputs: {failure.message}"))
        return
    tx.set(outputs_ref=tx.dump(outputs))
    end(tx, "completed")


# -- the end of a run ---------------------------------------------------------------------------------------------


def error_of(error_class: ErrorClass, message: str) -> dict[str, Any]:
    """An error as rows and events hold it."""
    return {"class": error_class, "message": message[:1_000]}


def as_json(value: Any) -> str:
    """JSON as rows hold it."""
    return msgspec.json.encode(value).decode()


def stop(tx: RunTransaction, outcome: str, error: dict[str, Any] | None) -> None:
    """No effect of this run starts any more; it ends when the steps that run have noticed."""
    tx.set(state="stopping", outcome=outcome, error=as_json(error) if error else None)
    idle = ("ready", "retrying", "waiting", "joining", "needs_review")
    tx.forget_plans(idle)
    tx.connection.execute(
        update(steps)
        .where(steps.c.run_id == tx.run.id, steps.c.state.in_(idle))
        .values(state="cancelled", finished_at=tx.now)
    )
    tx.connection.execute(delete(timers).where(timers.c.run_id == tx.run.id))
    tx.connection.execute(delete(outbox).where(outbox.c.run_id == tx.run.id))
    tx.event("run.stopping", outcome=outcome)
    finish_stop(tx)


def finish_stop(tx: RunTransaction) -> None:
    """End a stopping run as soon as no step of it runs."""
    running = select(steps.c.path).where(steps.c.run_id == tx.run.id, steps.c.state == "running").limit(1)
    if tx.connection.execute(running).first() is None:
        end(tx, tx.get("outcome"))


def end(tx: RunTransaction, state: str) -> None:
    """The run has ended: say so, and let the next of its concurrency group begin."""
    tx.set(state=state, finished_at=tx.now, held_usd_micros=0, held_tokens=0)
    error = tx.get("error")
    tx.event(f"run.{state}", **({"error": msgspec.json.decode(error)} if error else {}))
    tx.connection.execute(delete(timers).where(timers.c.run_id == tx.run.id))
    group = tx.run.concurrency_group
    if group is None or tx.get("started_at") is None:
        return
    tx.connection.execute(update(groups).where(groups.c.name == group).values(active=groups.c.active - 1))
    _wake_queued(tx, group)


def _wake_queued(tx: RunTransaction, group: str) -> None:
    """Let the oldest queued run of the group ask for a place (it wakes the next one when it got one)."""
    following = (
        select(runs.c.id, runs.c.traceparent)
        .where(runs.c.concurrency_group == group, runs.c.state == "queued", runs.c.id != tx.run.id)
        .order_by(runs.c.created_at, runs.c.id)
        .limit(1)
    )
    for row in tx.connection.execute(following):
        tx.publish_other(row.id, row.traceparent)


def leave_queue(tx: RunTransaction, definition: Definition) -> None:
    """Take a place in the concurrency group; stay queued when there is none.

    This is a transaction of its own, before the first :func:`advance`: on PostgreSQL the group's row must be locked
    after the rows of the tenant's content, and before those of the outbox, by everybody.
    """
    group, rule = tx.run.concurrency_group, definition.body.concurrency
    if group is not None and rule is not None:
        if not _take_place(tx, group, rule.max):
            return
        _wake_queued(tx, group)
    tx.set(state="running", started_at=tx.now)
    tx.event("run.started")
    wall = definition.body.budget.wall
    if wall is not None:
        tx.timer("", "wall", wall)


def _take_place(tx: RunTransaction, group: str, most: int) -> bool:
    taken = tx.connection.execute(
        update(groups)
        .where(groups.c.name == group, groups.c.active < most)
        .values(active=groups.c.active + 1)
    )
    if taken.rowcount:
        return True
    if tx.connection.execute(select(groups.c.name).where(groups.c.name == group)).first() is not None:
        return False
    try:
        with tx.connection.begin_nested():
            tx.connection.execute(insert(groups).values(name=group, active=1))
    except IntegrityError:  # another run has just made the group: it holds the first place
        return _take_place(tx, group, most)
    return True
