"""One transaction over one run: its row locked, its changes gathered and written together at the end.

Everything that changes a run goes through :meth:`Store.run`, so steps, events, timers and outbox always agree.
Statements are built once: building them costs more than running them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, Update, bindparam, delete, insert, select, update

from agents.errors import Fenced, UnknownRunError
from agents.schema import definitions, effects, events, now_ms, outbox, runs, steps, timers
from agents.states import RUN_ENDED
from agents.values import Values
from airi.database import insert_for, write

_LOCK_RUN = select(runs, now_ms().label("now")).where(runs.c.id == bindparam("run")).with_for_update()
_TOP_STEPS = select(steps).where(steps.c.run_id == bindparam("run"), steps.c.parent.is_(None))
_ONE_STEP = select(steps).where(steps.c.run_id == bindparam("run"), steps.c.path == bindparam("at"))
_CHILDREN = (
    select(steps)
    .where(steps.c.run_id == bindparam("run"), steps.c.parent == bindparam("at"))
    .order_by(steps.c.position)
)
_DROP_OUTBOX = delete(outbox).where(outbox.c.run_id == bindparam("run"), outbox.c.path == bindparam("at"))
_DROP_TIMERS = delete(timers).where(timers.c.run_id == bindparam("run"), timers.c.path == bindparam("at"))
_EFFECT = select(effects).where(effects.c.key == bindparam("effect_key"))
_CHARGE = (
    update(steps)
    .where(steps.c.run_id == bindparam("run"), steps.c.path == bindparam("at"))
    .values(
        cost_usd_micros=steps.c.cost_usd_micros + bindparam("usd"), tokens=steps.c.tokens + bindparam("count")
    )
)
_UNANSWERED = select(effects).where(
    effects.c.run_id == bindparam("run"), effects.c.path == bindparam("at"), effects.c.state == "intent",
    effects.c.kind == "model",
)  # fmt: skip
_WRITE_OFF = (
    update(effects)
    .where(effects.c.key == bindparam("effect_key"))
    .values(
        state="failed", held_usd_micros=0, held_tokens=0, cost_usd_micros=bindparam("usd"), tokens=bindparam("count"),
        finished_at=bindparam("at_ms"),
    )
)  # fmt: skip
_ADD_STEPS = insert(steps)
_ADD_EVENTS = insert(events)
_STEP_COLUMNS: dict[str, Any] = dict.fromkeys((column.name for column in steps.c), None)
_STEP_ZEROS = {"attempt": 0, "failures": 0, "crashes": 0, "fence": 0, "cost_usd_micros": 0, "tokens": 0}


@lru_cache(maxsize=256)
def _change_step(columns: tuple[str, ...], fenced: bool) -> Update:
    statement = update(steps).where(steps.c.run_id == bindparam("run"), steps.c.path == bindparam("at"))
    if fenced:
        statement = statement.where(steps.c.fence == bindparam("under"), steps.c.state == "running")
    return statement.values({name: bindparam(f"to_{name}") for name in columns})


@lru_cache(maxsize=256)
def _change_run(columns: tuple[str, ...]) -> Update:
    statement = update(runs).where(runs.c.id == bindparam("run"))
    return statement.values({name: bindparam(f"to_{name}") for name in columns})


def _upsert(engine_name: str, table: Any, keys: Sequence[str], changed: Sequence[str]) -> Any:
    statement = insert_for(engine_name, table)
    return statement.on_conflict_do_update(
        index_elements=list(keys), set_={name: statement.excluded[name] for name in changed}
    )


class RunTransaction:
    """A run under its lock. Read through it, change through it; :meth:`flush` writes what was gathered."""

    def __init__(self, store: Store, connection: Connection, run: Row[Any]) -> None:
        self.store = store
        self.connection = connection
        self.run = run
        self.now: int = run.now
        self.state: str = run.state
        """The run's state, with changes of this transaction."""
        self.new_steps: dict[str, dict[str, Any]] = {}
        self._run_changes: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []
        self._outbox: dict[tuple[str, str], dict[str, Any]] = {}
        self._timers: list[dict[str, Any]] = []
        self._seq: int = run.seq
        self._tops: dict[str, Row[Any]] | None = None
        self.items_refs: dict[str, str] = {}
        """References to the items of fan-outs, as far as they were read."""

    @property
    def published(self) -> bool:
        """Whether somebody is to be told of work."""
        return bool(self._outbox)

    # -- values ---------------------------------------------------------------------------------------------------

    def dump(self, value: Any) -> str:
        """Store a value of this run; return its reference."""
        return self.store.values.dump(self.connection, self.run.tenant, value)

    def load(self, ref: str | None) -> Any:
        """The value of a reference of this run."""
        return self.store.values.load(self.connection, self.run.tenant, ref)

    # -- the run --------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Any:
        """A column of the run, with changes of this transaction."""
        return self._run_changes.get(name, getattr(self.run, name))

    def set(self, **columns: Any) -> None:
        """Change columns of the run."""
        self._run_changes.update(columns)
        if "state" in columns:
            self.state = columns["state"]

    def event(self, kind: str, path: str | None = None, **data: Any) -> None:
        """Append to the run's events. ``data`` holds no content: states, classes, numbers, AIRI's own sentences."""
        self._seq += 1
        self._events.append(
            {
                "run_id": self.run.id, "seq": self._seq, "type": kind, "path": path, "created_at": self.now,
                "data": msgspec.json.encode(data).decode(),
            }
        )  # fmt: skip

    # -- steps ----------------------------------------------------------------------------------------------------

    def add_step(self, path: str, step_id: str, kind: str, state: str, **columns: Any) -> dict[str, Any]:
        """Create a step; the returned row may be changed until the end of the transaction."""
        row = {
            **_STEP_COLUMNS, **_STEP_ZEROS, "run_id": self.run.id, "path": path, "step_id": step_id, "kind": kind,
            "state": state, "created_at": self.now, **columns,
        }  # fmt: skip
        self.new_steps[path] = row
        return row

    def top_steps(self) -> dict[str, Row[Any]]:
        """The steps of the workflow that exist in the database, without items of fan-outs."""
        if self._tops is None:
            rows = self.connection.execute(_TOP_STEPS, {"run": self.run.id})
            self._tops = {row.path: row for row in rows}
        return self._tops

    def forget_reads(self) -> None:
        """Read steps anew: they were changed by statements of the caller's own."""
        self._tops = None

    def step(self, path: str) -> Row[Any] | None:
        """One step, or ``None``."""
        return self.connection.execute(_ONE_STEP, {"run": self.run.id, "at": path}).one_or_none()

    def items_of(self, path: str) -> Any:
        """The items of a fan-out."""
        if path in self.new_steps:
            return self.load(self.new_steps[path]["items_ref"])
        if path not in self.items_refs:
            row = self.step(path)
            assert row is not None
            self.items_refs[path] = row.items_ref
        return self.load(self.items_refs[path])

    def children(self, path: str) -> list[Row[Any]]:
        """The items of a fan-out, in order."""
        return list(self.connection.execute(_CHILDREN, {"run": self.run.id, "at": path}))

    def change_step(self, path: str, *, under: int | None = None, **columns: Any) -> None:
        """Change a step; with ``under``, only while it is running under that fence, else :class:`Fenced`."""
        self._tops = None
        values = {f"to_{name}": value for name, value in columns.items()}
        statement = _change_step(tuple(columns), under is not None)
        done = self.connection.execute(statement, {"run": self.run.id, "at": path, "under": under, **values})
        if done.rowcount != 1:
            raise Fenced(f"{path}: another worker has this step")

    def charge_step(self, path: str, usd_micros: int, tokens: int) -> None:
        """Add to what a step has cost."""
        self.connection.execute(_CHARGE, {"run": self.run.id, "at": path, "usd": usd_micros, "count": tokens})

    # -- messages and timers --------------------------------------------------------------------------------------

    def publish(self, path: str, fence: int = 0) -> None:
        """Tell somebody that a step is ready (or, with an empty path, that the run should be advanced)."""
        self._publish(self.run.id, path, fence, self.run.traceparent)

    def publish_other(self, run_id: str, traceparent: str) -> None:
        """Tell somebody that another run should be advanced."""
        self._publish(run_id, "", 0, traceparent)

    def _publish(self, run_id: str, path: str, fence: int, traceparent: str) -> None:
        self._outbox[run_id, path] = {
            "run_id": run_id, "path": path, "fence": fence, "traceparent": traceparent,
            "publishes": 0, "publish_after": self.now,
        }  # fmt: skip

    def forget_plans(self, idle: Sequence[str]) -> None:
        """Cancel what this transaction was about to begin."""
        for row in self.new_steps.values():
            if row["state"] in idle:
                row.update(state="cancelled", finished_at=self.now)
        self._outbox.clear()
        self._timers.clear()

    def taken(self, path: str) -> None:
        """The work that the outbox spoke of is being done."""
        self.connection.execute(_DROP_OUTBOX, {"run": self.run.id, "at": path})

    def timer(self, path: str, kind: str, delay_ms: int) -> None:
        """Wake the run in ``delay_ms``."""
        self._timers.append(
            {"run_id": self.run.id, "path": path, "kind": kind, "due_at": self.now + max(0, delay_ms)}
        )

    def drop_timers(self, path: str) -> None:
        """Forget the timers of a step."""
        self.connection.execute(_DROP_TIMERS, {"run": self.run.id, "at": path})

    def effect(self, key: str) -> Row[Any] | None:
        """The record of an effect, or ``None``."""
        return self.connection.execute(_EFFECT, {"effect_key": key}).one_or_none()

    def write_off(self, path: str) -> None:
        """Model calls of a step that were made and never answered: count what they may have cost as spent."""
        for row in self.connection.execute(_UNANSWERED, {"run": self.run.id, "at": path}).all():
            held, tokens = row.held_usd_micros, row.held_tokens
            self.set(
                held_usd_micros=max(0, self.get("held_usd_micros") - held),
                spent_usd_micros=self.get("spent_usd_micros") + held,
                held_tokens=max(0, self.get("held_tokens") - tokens),
                spent_tokens=self.get("spent_tokens") + tokens,
            )
            self.charge_step(path, held, tokens)
            self.connection.execute(
                _WRITE_OFF, {"effect_key": row.key, "usd": held, "count": tokens, "at_ms": self.now}
            )

    # -- the end --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was gathered."""
        run_id = self.run.id
        for path, row in self.new_steps.items():
            if row["state"] == "ready":
                self.publish(path)
        if self.new_steps:
            self.connection.execute(_ADD_STEPS, list(self.new_steps.values()))
        if self._events:
            self.connection.execute(_ADD_EVENTS, self._events)
            self._run_changes["seq"] = self._seq
        if self._outbox:
            self.connection.execute(self.store.put_outbox, list(self._outbox.values()))
        if self._timers:
            self.connection.execute(self.store.put_timers, self._timers)
        if self._run_changes:
            values = {f"to_{name}": value for name, value in self._run_changes.items()}
            self.connection.execute(_change_run(tuple(self._run_changes)), {"run": run_id, **values})


class Store:
    """The runs database. After a commit ``on_publish`` is called when something was left in the outbox, and
    ``on_ended`` (row, state, now) when the run has ended."""

    def __init__(self, engine: Engine, values: Values) -> None:
        self.engine = engine
        self.values = values
        self.on_publish: Callable[[], None] = lambda: None
        self.on_ended: Callable[[Any, str, int], None] = lambda _run, _state, _now: None
        self.put_outbox = _upsert(
            engine.dialect.name,
            outbox,
            ("run_id", "path"),
            ("fence", "traceparent", "publishes", "publish_after"),
        )
        self.put_definition = insert_for(engine.dialect.name, definitions).on_conflict_do_nothing()
        self.put_timers = _upsert(engine.dialect.name, timers, ("run_id", "path", "kind"), ("due_at",))

    @contextmanager
    def run(self, run_id: str) -> Iterator[RunTransaction]:
        """Lock a run for a transaction; raise :class:`UnknownRunError`."""
        with write(self.engine) as connection:
            row = connection.execute(_LOCK_RUN, {"run": run_id}).one_or_none()
            if row is None:
                raise UnknownRunError(f"there is no run {run_id!r}")
            transaction = RunTransaction(self, connection, row)
            yield transaction
            transaction.flush()
        if transaction.published:
            self.on_publish()
        if transaction.state in RUN_ENDED and row.state not in RUN_ENDED:
            self.on_ended(row, transaction.state, transaction.now)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that concerns no single run."""
        with write(self.engine) as connection:
            yield connection

    def definition_body(self, definition_id: str) -> bytes | None:
        """The canonical JSON of a definition that runs are pinned to."""
        with self.engine.connect() as connection:
            body = connection.scalar(select(definitions.c.body).where(definitions.c.id == definition_id))
        return None if body is None else str(body).encode()
