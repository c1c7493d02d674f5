"""Who works on a step: claims, results, failures, renewals. Only the holder of the current fence may write."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, select, tuple_, update

from agents import context
from agents.definition import Definition, Retry, Step
from agents.errors import ErrorClass, Fenced
from agents.scheduling import advance, as_json, child_ended, error_of, finish_stop
from agents.schema import now_ms, runs, steps
from agents.states import RUN_STARTS_EFFECTS
from agents.store import RunTransaction, Store
from airi.ids import new_span_id


@dataclass(slots=True)
class Claim:
    """A step that this process may work on: its fence, and everything that the work needs to know."""

    run_id: str
    tenant: str
    team: str
    key_id: str
    workflow: str
    definition: Definition
    step: Step
    path: str
    fence: int
    attempt: int
    trace_id: str
    traceparent: str
    depth: int
    timeout_ms: int
    span_id: str
    """The span of this attempt: the parent of the model calls that it makes."""
    values: dict[str, Any] = field(repr=False)
    """What the step's expressions see."""

    @property
    def key(self) -> tuple[str, str]:
        """Names the step among those that a process holds."""
        return self.run_id, self.path


class Leases:
    """Claims and their ends, for one process (``owner``)."""

    def __init__(
        self, store: Store, definition_of: Callable[[str], Definition], owner: str, lease_ms: int
    ) -> None:
        self._store = store
        self._definition_of = definition_of
        self.owner = owner
        self.lease_ms = lease_ms

    # -- beginning ------------------------------------------------------------------------------------------------

    def claim(self, run_id: str, path: str, fence: int) -> Claim | None:
        """Take a step that is ready under ``fence``; ``None`` when there is nothing (more) to do."""
        with self._store.run(run_id) as tx:
            row = tx.step(path)
            if row is not None and row.state == "ready" and row.fence != fence:
                return None  # an old message; the outbox still speaks of the present fence
            tx.taken(path)
            if row is None or row.state != "ready" or tx.state not in RUN_STARTS_EFFECTS:
                return None
            changes = self._claimed(tx, row.fence, row.attempt)
            tx.change_step(path, **changes)
            tx.event("step.started", path, attempt=changes["attempt"], worker=self.owner)
            return self._as_claim(tx, row.step_id, path, row.position, row.parent, changes)

    def claim_new(self, tx: RunTransaction, definition: Definition) -> Claim | None:
        """Take one of the steps that this very transaction has made ready: no message, no second commit."""
        if tx.state not in RUN_STARTS_EFFECTS:
            return None
        row = next((row for row in tx.new_steps.values() if row["state"] == "ready"), None)
        if row is None:
            return None
        row.update(self._claimed(tx, 0, 0))
        tx.event("step.started", row["path"], attempt=1, worker=self.owner)
        return self._as_claim(
            tx, row["step_id"], row["path"], row["position"], row["parent"], row, definition
        )

    def _claimed(self, tx: RunTransaction, fence: int, attempt: int) -> dict[str, Any]:
        return {
            "state": "running", "fence": fence + 1, "attempt": attempt + 1, "lease_owner": self.owner,
            "lease_until": tx.now + self.lease_ms, "started_at": tx.now,
        }  # fmt: skip

    def _as_claim(
        self, tx: RunTransaction, step_id: str, path: str, position: int | None, parent: str | None,
        changes: dict[str, Any], definition: Definition | None = None,
    ) -> Claim:  # fmt: skip
        run = tx.run
        definition = definition or self._definition_of(run.definition_id)
        step = definition.steps[step_id]
        wanted = context.to_execute(definition, step)
        rows = tx.top_steps() if wanted else {}
        values = context.values(tx, definition, rows, wanted)
        if step.for_ is not None and parent is not None:
            values |= {step.for_.each: tx.items_of(parent)[position], "index": position}
        return Claim(
            run.id, run.tenant, run.team, run.key_id, run.workflow, definition, step, path, changes["fence"],
            changes["attempt"], run.trace_id, run.traceparent, run.depth, definition.timeout_ms(step), new_span_id(), values,
        )  # fmt: skip

    # -- ending ---------------------------------------------------------------------------------------------------

    def succeed(
        self, claim: Claim, output: Any, input_hash: str | None = None, *, go_on: bool = True
    ) -> Claim | None:
        """Record a result and what follows from it; return the next step of the run when this process took it.

        Raises :class:`Fenced` when the step is no longer this process's to end.
        """
        with self._store.run(claim.run_id) as tx:
            tx.change_step(
                claim.path, under=claim.fence, state="succeeded", output_ref=tx.dump(output), input_hash=input_hash,
                finished_at=tx.now, lease_owner=None, lease_until=None, error=None,
            )  # fmt: skip
            tx.event("step.succeeded", claim.path, attempt=claim.attempt)
            self._after(tx, claim)
            return self.claim_new(tx, claim.definition) if go_on else None

    def fail(
        self, claim: Claim, error_class: ErrorClass, message: str, retry_after_ms: int | None = None
    ) -> str:
        """Record a failed attempt; return the state that the step is in now: ``retrying`` or ``failed``."""
        error = error_of(error_class, message)
        retry = claim.definition.retry(claim.step)
        with self._store.run(claim.run_id) as tx:
            row = tx.step(claim.path)
            if row is None or row.fence != claim.fence or row.state != "running":
                raise Fenced(f"{claim.path}: another worker has this step")
            failures = row.failures + 1
            again = (
                error_class in retry.on and failures < retry.max_attempts and tx.state in RUN_STARTS_EFFECTS
            )
            common = {"failures": failures, "error": as_json(error), "lease_owner": None, "lease_until": None}
            if again:
                delay = max(backoff_ms(retry, failures), retry_after_ms or 0)
                tx.change_step(claim.path, state="retrying", **common)
                tx.timer(claim.path, "retry", delay)
                tx.event("step.retrying", claim.path, attempt=claim.attempt, retry_in_ms=delay, **error)
                return "retrying"
            self._failed(tx, row, claim.definition, error, common)
            return "failed"

    def review(self, claim: Claim, message: str) -> None:
        """An unsafe effect is ambiguous: keep the step for a person to decide."""
        with self._store.run(claim.run_id) as tx:
            tx.change_step(
                claim.path, under=claim.fence, state="needs_review", error=as_json(error_of("ambiguous", message)),
                lease_owner=None, lease_until=None,
            )  # fmt: skip
            tx.event("step.needs_review", claim.path, attempt=claim.attempt, **error_of("ambiguous", message))
            advance(tx, claim.definition)

    def cancelled(self, claim: Claim) -> None:
        """The run was stopped and the step's work with it."""
        with self._store.run(claim.run_id) as tx:
            tx.change_step(
                claim.path,
                under=claim.fence,
                state="cancelled",
                finished_at=tx.now,
                lease_owner=None,
                lease_until=None,
            )
            tx.event("step.cancelled", claim.path, attempt=claim.attempt)
            finish_stop(tx)

    def give_back(self, claim: Claim) -> None:
        """This process goes away: another may take the step at once, and nobody is blamed."""
        with self._store.run(claim.run_id) as tx:
            if tx.state == "stopping":
                tx.change_step(
                    claim.path, under=claim.fence, state="cancelled", finished_at=tx.now, lease_owner=None,
                    lease_until=None,
                )  # fmt: skip
                finish_stop(tx)
                return
            tx.change_step(claim.path, under=claim.fence, state="ready", lease_owner=None, lease_until=None)
            tx.event("step.given_back", claim.path, attempt=claim.attempt)
            tx.publish(claim.path, claim.fence)

    def _after(self, tx: RunTransaction, claim: Claim) -> None:
        """What the success of a step means for its fan-out and its run."""
        if tx.state == "stopping":
            finish_stop(tx)
            return
        parent, _, item = claim.path.partition("/")
        if not item or child_ended(tx, claim.definition, parent, "succeeded", None):
            advance(tx, claim.definition)

    def _failed(
        self,
        tx: RunTransaction,
        row: Row[Any],
        definition: Definition,
        error: dict[str, Any],
        columns: dict[str, Any],
    ) -> None:
        tx.change_step(
            row.path, **{**columns, "state": "failed", "error": as_json(error), "finished_at": tx.now}
        )
        tx.event("step.failed", row.path, attempt=row.attempt, **error)
        tx.write_off(row.path)
        if tx.state == "stopping":
            finish_stop(tx)
            return
        if row.parent is not None:
            child_ended(tx, definition, row.parent, "failed", error)
        advance(tx, definition)

    # -- keeping --------------------------------------------------------------------------------------------------

    def renew(self, held: Iterable[Claim]) -> set[tuple[str, str]]:
        """Prolong leases; return those that are still this process's."""
        wanted = {(claim.run_id, claim.path): claim.fence for claim in held}
        if not wanted:
            return set()
        with self._store.write() as connection:
            rows = connection.execute(
                update(steps)
                .where(
                    tuple_(steps.c.run_id, steps.c.path).in_(list(wanted)),
                    steps.c.lease_owner == self.owner,
                    steps.c.state == "running",
                )
                .values(lease_until=now_ms() + self.lease_ms)
                .returning(steps.c.run_id, steps.c.path, steps.c.fence)
            )
            return {(row.run_id, row.path) for row in rows if wanted.get((row.run_id, row.path)) == row.fence}

    def stopped(self, run_ids: Iterable[str]) -> set[str]:
        """Those of the runs that start no effects any more."""
        ids = list(set(run_ids))
        if not ids:
            return set()
        with self._store.engine.connect() as connection:
            rows = connection.execute(
                select(runs.c.id).where(runs.c.id.in_(ids), runs.c.state.not_in(RUN_STARTS_EFFECTS))
            )
            return set(rows.scalars())

    def lost(self, row: Row[*tuple[Any, ...]]) -> None:
        """A lease ran out (or its owner died): let another worker take the step, unless it killed too many."""
        with self._store.run(row.run_id) as tx:
            now = tx.step(row.path)
            if now is None or now.state != "running" or now.fence != row.fence:
                return
            if now.lease_until == row.lease_until or now.lease_until < tx.now:
                self._lost(tx, now)

    def _lost(self, tx: RunTransaction, row: Row[Any]) -> None:
        crashes = row.crashes + 1
        definition = self._definition_of(tx.run.definition_id)
        most = definition.retry(definition.steps[row.step_id]).max_crashes
        columns: dict[str, Any] = {
            "crashes": crashes,
            "lease_owner": None,
            "lease_until": None,
            "fence": row.fence + 1,
        }
        tx.event("step.lost", row.path, attempt=row.attempt, crashes=crashes)
        if tx.state == "stopping":
            tx.change_step(row.path, **columns, state="cancelled", finished_at=tx.now)
            finish_stop(tx)
        elif crashes >= most:
            message = f"{crashes} workers were lost while they worked on this step; it is not tried again"
            self._failed(tx, row, definition, error_of("poison", message), columns)
        else:
            tx.change_step(row.path, **columns, state="ready")
            tx.publish(row.path, row.fence + 1)


def backoff_ms(retry: Retry, failures: int) -> int:
    """The pause before the next attempt, in milliseconds; "full" jitter as in Brooker (AWS, 2015)."""
    rule = retry.backoff
    ceiling = min(rule.max, rule.initial * rule.factor ** (failures - 1))
    return round(random.uniform(0, ceiling) if rule.jitter == "full" else ceiling)  # noqa: S311  # spreads load
