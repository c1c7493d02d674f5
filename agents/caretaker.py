"""What makes messages mere hints: whatever is overdue in the database is found and told (again).

One thread a process publishes the outbox, wakes what its timers say, and takes steps from workers that were lost.
Any number of caretakers may run; all that they do is idempotent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy import and_, delete, func, or_, select, tuple_, update
from sqlalchemy.exc import DBAPIError

from agents import faults
from agents.commands import Commands
from agents.errors import UnknownRunError
from agents.leases import Leases
from agents.schema import now_ms, outbox, runs, steps, timers
from agents.store import Store
from agents.tuning import Tuning, surely_dead
from airi.errors import AiriError

logger = logging.getLogger(__name__)
_BATCH = 200
_QUIET_S = 5.0


@dataclass(frozen=True, slots=True)
class Hint:
    """A message: the step ``path`` of a run is ready under ``fence``; with an empty path: advance the run."""

    run_id: str
    path: str
    fence: int
    traceparent: str


Send = Callable[[list[Hint]], None]
"""Hands hints to the broker; may raise: they are sent again later."""


class Caretaker:
    """Publishes, wakes and reaps, in a thread of its own."""

    def __init__(self, store: Store, commands: Commands, leases: Leases, send: Send, tuning: Tuning) -> None:
        self._store = store
        self._commands = commands
        self._leases = leases
        self._send = send
        self._tuning = tuning
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="caretaker", daemon=True)
        self._broker_told = 0.0
        self._told: dict[str, float] = {}
        store.on_publish = self._wake.set

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what is in the outbox stays there for others."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _run(self) -> None:
        reap_at = 0.0
        is_new = True
        while not self._closing.is_set():
            self._wake.wait(self._tuning.reap_ms / 1000)
            self._wake.clear()
            try:
                if is_new:  # perhaps in the place of a worker that was killed before it had taken any lease
                    self._tell_again()
                    is_new = False
                self.publish()
                if time.monotonic() >= reap_at:
                    reap_at = time.monotonic() + self._tuning.reap_ms / 1000
                    self.reap()
            except (DBAPIError, AiriError) as error:
                logger.warning("runs could not be looked after: %s", type(error).__name__)
                self._closing.wait(0.5)

    def publish(self) -> int:
        """Send what the outbox holds and nobody was told lately; return how many hints went out."""
        sent = 0
        while hints := self._take():
            faults.point("publish")
            try:
                self._send(hints)
            except Exception as error:  # noqa: BLE001  # any broker, any failure: the rows are still there
                self._put_back(hints)
                if time.monotonic() - self._broker_told > _QUIET_S:
                    self._broker_told = time.monotonic()
                    logger.warning("the broker takes no messages (%s); they are kept", type(error).__name__)
                self._closing.wait(0.2)
                return sent
            sent += len(hints)
            if len(hints) < _BATCH:
                break
        return sent

    def _take(self) -> list[Hint]:
        due = select(outbox.c.run_id).where(outbox.c.publish_after <= now_ms()).limit(1)
        with (
            self._store.engine.connect() as connection
        ):  # most of the time there is nothing: take no lock for that
            if connection.execute(due).first() is None:
                return []
        with self._store.write() as connection:
            rows = connection.execute(
                select(outbox)
                .where(outbox.c.publish_after <= now_ms())
                .order_by(outbox.c.publish_after)
                .limit(_BATCH)
                .with_for_update(skip_locked=True)
            ).all()
            again: dict[int, list[tuple[str, str]]] = {}
            for row in rows:
                again.setdefault(row.publishes, []).append((row.run_id, row.path))
            for publishes, keys in again.items():
                pause = min(self._tuning.republish_ms * 2**publishes, self._tuning.republish_max_ms)
                connection.execute(
                    update(outbox)
                    .where(tuple_(outbox.c.run_id, outbox.c.path).in_(keys))
                    .values(publishes=publishes + 1, publish_after=now_ms() + pause)
                )
        return [Hint(row.run_id, row.path, row.fence, row.traceparent) for row in rows]

    def _put_back(self, hints: list[Hint]) -> None:
        with self._store.write() as connection:
            connection.execute(
                update(outbox)
                .where(
                    tuple_(outbox.c.run_id, outbox.c.path).in_([(hint.run_id, hint.path) for hint in hints])
                )
                .values(publishes=0, publish_after=now_ms() + 500)
            )

    def reap(self) -> None:
        """Find leases that ran out, workers that died, timers that are due."""
        with self._store.engine.connect() as connection:
            now = now_ms()
            owners = connection.execute(
                select(steps.c.lease_owner, func.count())
                .where(steps.c.lease_until.is_not(None))
                .group_by(steps.c.lease_owner)
            ).all()
            dead = [owner for owner, _ in owners if owner is not None and surely_dead(owner)]
            gone = steps.c.lease_until < now
            lost = connection.execute(
                select(steps.c.run_id, steps.c.path, steps.c.fence, steps.c.lease_until)
                .where(
                    steps.c.lease_until.is_not(None),
                    or_(gone, steps.c.lease_owner.in_(dead)) if dead else gone,
                )
                .limit(_BATCH)
            ).all()
            due = connection.execute(
                select(timers).where(timers.c.due_at <= now).order_by(timers.c.due_at).limit(_BATCH)
            )
            woken = due.all()
        for row in lost:
            self._one(row.run_id, partial(self._leases.lost, row))
        if lost:
            self._tell_again()
        for row in woken:
            self._one(row.run_id, partial(self._commands.fire, row.run_id, row.path, row.kind))

    def _tell_again(self) -> None:
        """Make the oldest hints that nobody acted on due: a worker that is lost takes those with it that it has fetched."""
        told = and_(outbox.c.publishes > 0, outbox.c.publish_after > now_ms())
        with self._store.write() as connection:
            rows = connection.execute(
                select(outbox.c.run_id, outbox.c.path)
                .where(told)
                .order_by(outbox.c.publish_after)
                .limit(_BATCH)
                .with_for_update(skip_locked=True)
            ).all()
            if rows:
                connection.execute(
                    update(outbox)
                    .where(
                        tuple_(outbox.c.run_id, outbox.c.path).in_([(row.run_id, row.path) for row in rows])
                    )
                    .values(publishes=0, publish_after=now_ms())
                )
        self._wake.set()

    def _one(self, run_id: str, action: Callable[[], None]) -> None:
        """Look after one run; what is wrong with it must not keep the others waiting."""
        try:
            action()
        except UnknownRunError:
            with self._store.write() as connection:
                connection.execute(delete(timers).where(timers.c.run_id == run_id))
        except DBAPIError:
            raise
        except Exception:  # whatever is wrong with one run: it is told, and the others are looked after
            if time.monotonic() - self._told.get(run_id, -_QUIET_S) > _QUIET_S:
                self._told[run_id] = time.monotonic()
                while len(self._told) > _BATCH:
                    del self._told[next(iter(self._told))]
                logger.exception("a run could not be looked after", extra={"run": run_id})

    def waiting(self) -> dict[str, int]:
        """Gauges: messages in the outbox, runs by state that have not ended."""
        with self._store.engine.connect() as connection:
            count = connection.scalar(select(func.count()).select_from(outbox)) or 0
            states = connection.execute(
                select(runs.c.state, func.count()).where(runs.c.finished_at.is_(None)).group_by(runs.c.state)
            ).all()
        return {"runs_outbox": int(count), **{f"runs_{state}": int(number) for state, number in states}}
