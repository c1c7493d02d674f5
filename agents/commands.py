"""What people and timers do to runs: start, cancel, decide, resume, wake. Each is one transaction."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from agents import resuming, templates
from agents.definition import Definition
from agents.errors import RunConflictError, RunStateError, UnknownRunError
from agents.scheduling import advance, as_json, error_of, leave_queue, stop
from agents.schema import definitions, effects, now_ms, runs, steps, timers
from agents.states import RUN_ENDED
from agents.store import RunTransaction, Store
from airi.ids import new_id

_START_PATIENCE_MS = 2_000
DefinitionOf = Callable[[str], Definition]


@dataclass(frozen=True, slots=True)
class Starter:
    """Who starts a run; the run's model calls are made in this name."""

    tenant: str
    team: str = ""
    key_id: str = ""
    depth: int = 0
    """How many workflows called each other as models to get here."""
    called_by: str | None = None
    """The run whose step asks for this one."""


class Commands:
    """Changes of runs from outside of the workers."""

    def __init__(self, store: Store, definition_of: DefinitionOf) -> None:
        self._store = store
        self._definition_of = definition_of

    def start(
        self, definition: Definition, inputs: dict[str, Any], starter: Starter, *,
        idempotency_key: str | None = None, trace_id: str, traceparent: str, budget_usd_micros: int | None = None,
    ) -> tuple[str, bool]:  # fmt: skip
        """Create a run and begin it; return its id and whether it is new (else the key has been used before)."""
        digest = hashlib.sha256(
            msgspec.json.encode(inputs, order="sorted") + definition.name.encode()
        ).hexdigest()
        run_id = new_id("run")
        try:
            with self._store.write() as connection:
                self._check_caller(connection, starter.called_by)
                now: int = connection.execute(select(now_ms())).scalar_one()
                self._keep_definition(connection, definition, now)
                limits = definition.body.budget
                connection.execute(
                    insert(runs).values(
                        id=run_id, tenant=starter.tenant, team=starter.team, key_id=starter.key_id,
                        workflow=definition.name, definition_id=definition.id, state="queued",
                        inputs_ref=self._store.values.dump(connection, starter.tenant, inputs), inputs_hash=digest,
                        idempotency_key=idempotency_key, depth=starter.depth, trace_id=trace_id,
                        traceparent=traceparent, seq=0, budget_usd_micros=_lower(limits.cost_usd, budget_usd_micros), held_usd_micros=0,
                        spent_usd_micros=0, largest_usd_micros=0, budget_tokens=limits.tokens, held_tokens=0,
                        spent_tokens=0, steps_started=0, created_at=now,
                        concurrency_group=_group(definition, inputs, starter, run_id), called_by=starter.called_by,
                    )
                )  # fmt: skip
                # We begin the run ourselves below; if this process dies before, whoever reads the outbox does.
                connection.execute(
                    self._store.put_outbox,
                    {"run_id": run_id, "path": "", "fence": 0, "traceparent": traceparent, "publishes": 0,
                     "publish_after": now + _START_PATIENCE_MS},
                )  # fmt: skip
        except IntegrityError:
            return self._started_before(starter.tenant, definition.name, idempotency_key, digest), False
        self.advance(run_id)
        return run_id, True

    def _check_caller(self, connection: Connection, run_id: str | None) -> None:
        """A run that was stopped calls nobody any more. Its row is locked, so that a cancel sees this run or stops it here."""
        if run_id is None:
            return
        state = connection.scalar(select(runs.c.state).where(runs.c.id == run_id).with_for_update())
        if state in ("stopping", "cancelled", "failed"):
            raise RunStateError(f"the run {run_id} that calls this workflow was stopped")

    def _keep_definition(self, connection: Connection, definition: Definition, now: int) -> None:
        known = connection.scalar(select(definitions.c.id).where(definitions.c.id == definition.id))
        if known is None:
            connection.execute(
                self._store.put_definition,
                {
                    "id": definition.id,
                    "name": definition.name,
                    "body": definition.canonical.decode(),
                    "created_at": now,
                },
            )

    def _started_before(self, tenant: str, workflow: str, key: str | None, digest: str) -> str:
        where = (runs.c.tenant == tenant, runs.c.workflow == workflow, runs.c.idempotency_key == key)
        with self._store.engine.connect() as connection:
            row = connection.execute(select(runs.c.id, runs.c.inputs_hash).where(*where)).one()
        if row.inputs_hash != digest:
            raise RunConflictError("this idempotency key was used for a run with other inputs")
        return str(row.id)

    def advance(self, run_id: str) -> None:
        """Fold the run's state; do nothing when nothing follows from it."""
        with self._store.run(run_id) as tx:
            if tx.state == "queued":
                leave_queue(tx, self._definition_of(tx.run.definition_id))
            if tx.state == "queued":
                tx.taken("")  # whoever ends a run of the group tells again
                return
        with self._store.run(run_id) as tx:
            advance(tx, self._definition_of(tx.run.definition_id))
            tx.taken("")

    # -- stopping -------------------------------------------------------------------------------------------------

    def cancel(self, run_id: str, by: str) -> list[str]:
        """Stop a run and those that it has called. When this returns, no new effect starts; returned are the keys of those
        that had started."""
        with self._store.run(run_id) as tx:
            if tx.state in RUN_ENDED:
                if tx.state == "cancelled":
                    return []
                raise RunStateError(f"the run has already {tx.state.replace('completed', 'been completed')}")
            if tx.state != "stopping":
                tx.event("run.cancel_requested", by=by)
                stop(tx, "cancelled", None)
            in_flight = self._in_flight(tx)
        for called in self._called_by(run_id):
            with contextlib.suppress(RunStateError):  # it has ended in between
                in_flight += self.cancel(called, f"run {run_id}")
        return in_flight

    def _called_by(self, run_id: str) -> list[str]:
        with self._store.engine.connect() as connection:
            here = select(runs.c.id).where(runs.c.called_by == run_id, runs.c.state.not_in(RUN_ENDED))
            return list(connection.execute(here).scalars())

    def _in_flight(self, tx: RunTransaction) -> list[str]:
        started = select(effects.c.key).where(effects.c.run_id == tx.run.id, effects.c.state == "intent")
        running = select(steps.c.path).where(
            steps.c.run_id == tx.run.id, steps.c.state == "running", steps.c.kind == "tool"
        )
        keys = set(tx.connection.execute(started).scalars())
        # A function without outside effects has no record of its intent; its step stands for it.
        keys.update(f"{tx.run.id}:{path}:0" for path in tx.connection.execute(running).scalars())
        return sorted(keys)

    # -- deciding -------------------------------------------------------------------------------------------------

    def decide(self, run_id: str, path: str | None, *, approved: bool, by: str, comment: str = "") -> str:
        """Answer an approval; return the step's path. The caller has checked the role."""
        with self._store.run(run_id) as tx:
            row = self._waiting(tx, path)
            self._decided(tx, row.path, approved=approved, by=by, comment=comment)
            return str(row.path)

    def _waiting(self, tx: RunTransaction, path: str | None) -> Any:
        rows = [row for row in tx.top_steps().values() if row.kind == "approval"]
        if path is not None:
            rows = [row for row in rows if row.path == path]
            if not rows:
                raise UnknownRunError(f"the run has no approval {path!r} (yet)", code="approval_not_found")
        waiting = [row for row in rows if row.state == "waiting"]
        if len(waiting) == 1:
            return waiting[0]
        if not waiting:
            raise RunStateError("the run waits for no approval; it may have been decided already")
        names = ", ".join(sorted(row.path for row in waiting))
        raise RunStateError(f"several approvals wait; name one of them as 'step': {names}")

    def _decided(self, tx: RunTransaction, path: str, *, approved: bool, by: str, comment: str) -> None:
        definition = self._definition_of(tx.run.definition_id)
        wait = definition.steps[path].wait
        assert wait is not None
        assert wait.approval is not None
        output = {"approved": approved, "by": by, "comment": comment, "at_ms": tx.now}
        fails = not approved and wait.approval.on_reject == "fail"
        error = error_of("rejected", f"{by} did not approve") if fails else None
        tx.change_step(
            path, state="failed" if fails else "succeeded", output_ref=tx.dump(output), finished_at=tx.now,
            error=as_json(error) if error else None,
        )  # fmt: skip
        tx.drop_timers(path)
        tx.event("step.decided", path, approved=approved, by=by)
        advance(tx, definition)

    # -- timers ---------------------------------------------------------------------------------------------------

    def fire(self, run_id: str, path: str, kind: str) -> None:
        """A timer is due: do what it was set for, once."""
        with self._store.run(run_id) as tx:
            where = (timers.c.run_id == run_id, timers.c.path == path, timers.c.kind == kind)
            if tx.connection.execute(delete(timers).where(*where, timers.c.due_at <= tx.now)).rowcount != 1:
                return
            if tx.state in RUN_ENDED or tx.state == "stopping":
                return
            if kind == "wall":
                stop(tx, "failed", error_of("budget", "the run's time is used up (budget.wall)"))
                return
            row = tx.step(path)
            if row is None or row.state not in ("waiting", "retrying"):
                return
            definition = self._definition_of(tx.run.definition_id)
            if kind == "retry":
                tx.change_step(path, state="ready")
                tx.publish(path, row.fence)
            elif kind == "duration":
                tx.change_step(path, state="succeeded", finished_at=tx.now)
                tx.event("step.succeeded", path)
                advance(tx, definition)
            else:
                wait = definition.steps[path].wait
                assert wait is not None
                assert wait.approval is not None
                approve = wait.approval.on_timeout == "approve"
                self._decided(tx, path, approved=approve, by="timeout", comment="nobody decided in time")

    # -- going on -------------------------------------------------------------------------------------------------

    def resume(
        self, run_id: str, path: str | None, action: Literal["retry", "done", "fail"], output: Any, by: str
    ) -> list[str]:
        """Settle steps that need review, or try a failed run again: see :mod:`agents.resuming`."""
        with self._store.run(run_id) as tx:
            return resuming.resume(tx, self._definition_of(tx.run.definition_id), path, action, output, by)


def _group(definition: Definition, inputs: dict[str, Any], starter: Starter, run_id: str) -> str | None:
    """The concurrency group of a run; groups never cross tenants or workflows."""
    rule = definition.body.concurrency
    if rule is None:
        return None
    values = {
        "inputs": inputs, "steps": {}, "run": {"id": run_id, "workflow": definition.name},
        "tenant": {"id": starter.tenant, "team": starter.team},
        "workflow": {"name": definition.name, "id": definition.id},
    }  # fmt: skip
    text = str(templates.resolve(rule.group, values))
    return f"{starter.tenant}/{definition.name}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _lower(one: int | None, other: int | None) -> int | None:
    """The lower of two limits, of which either may be missing."""
    return min((limit for limit in (one, other) if limit is not None), default=None)
