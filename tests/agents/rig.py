"""The engine without Celery: hints go from the caretaker to threads of this process, through a hostile broker."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine as Database
from sqlalchemy import select

from agents import checking
from agents.assembly import work_maker
from agents.caretaker import Caretaker, Hint
from agents.commands import Starter
from agents.definition import Definition
from agents.engine import Engine, prepare
from agents.runtime import Runtime
from agents.schema import effects, events, runs, steps
from agents.tools.functions import Registry
from agents.tools.toolbox import ToolBox
from agents.tuning import Tuning
from airi.config.document import ConfigDocument
from airi.config.kinds import Workflow
from airi.config.loader import load_text
from airi.content import ContentStore
from airi.ids import new_span_id, new_trace_id
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.settings import Settings

# Pauses are not doubled: of messages half of which are lost, some are lost six times, and that would take a minute.
# Leases are as long as in production: no test here waits for one to run out, and a machine may stand still for seconds.
FAST = Tuning(
    watch_ms=50, reap_ms=50, republish_ms=1_000, republish_max_ms=1_000, drain_ms=2_000, slots=64, threads=4
)  # fmt: skip
RING = KeyRing([Secret("tests-" + "x" * 40)])
TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def define(text: str, name: str = "test") -> Definition:
    """A definition from YAML without its head."""
    head = f"apiVersion: airi/v1alpha1\nkind: Workflow\nmetadata: {{name: {name}}}\n"
    (loaded,) = load_text(head + text, "flow.yaml")
    assert isinstance(loaded.resource, Workflow)
    return checking.parse(loaded.resource, loaded.where)


class HostileBroker:
    """Loses, repeats and shuffles messages as told."""

    def __init__(self, *, copies: int = 1, lose: float = 0.0, shuffle: bool = False, seed: int = 1) -> None:
        self.copies, self.lose, self.shuffle = copies, lose, shuffle
        self.random = random.Random(seed)
        self.messages: queue.Queue[Hint | None] = queue.Queue()
        self.sent = 0

    def send(self, hints: list[Hint]) -> None:
        self.sent += len(hints)
        out = [hint for hint in hints for _ in range(self.copies) if self.random.random() >= self.lose]
        if self.shuffle:
            self.random.shuffle(out)
        for hint in out:
            self.messages.put(hint)


class Rig:
    """An engine with a runtime that is fed by a broker of ours."""

    def __init__(
        self,
        database: Database,
        registry: Registry | None = None,
        *,
        gateway: str = "http://127.0.0.1:9",
        broker: HostileBroker | None = None,
        tuning: Tuning = FAST,
        document: ConfigDocument | None = None,
        work: bool = True,
    ) -> None:
        prepare(database)
        self.database = database
        self.engine = Engine(database, ContentStore(database, RING), tuning)
        self.registry = registry or Registry()
        self.broker = broker or HostileBroker()
        settings = Settings(home=Path("/nowhere"), gateway_url=gateway)
        self.box = ToolBox(lambda: document or ConfigDocument({}), registry=self.registry)
        self.spans: list[Any] = []

        make_work = work_maker(self.engine, settings, RING, self.box, self, "test")
        self.runtime = Runtime(self.engine.leases, make_work, tuning)
        self.caretaker = Caretaker(
            self.engine.store, self.engine.commands, self.engine.leases, self.broker.send, tuning
        )
        self.threads = [threading.Thread(target=self._consume, daemon=True) for _ in range(tuning.threads)]
        if work:
            self.start()

    def emit_span(self, span: Any) -> None:
        self.spans.append(span)

    def start(self) -> None:
        self.runtime.start()
        self.caretaker.start()
        for thread in self.threads:
            thread.start()

    def _consume(self) -> None:
        while (hint := self.broker.messages.get()) is not None:
            if hint.path:
                self.runtime.execute(hint.run_id, hint.path, hint.fence)
            else:
                self.engine.commands.advance(hint.run_id)

    def close(self) -> None:
        self.runtime.drain()
        self.caretaker.close()
        for _ in self.threads:
            self.broker.messages.put(None)
        for thread in self.threads:
            if thread.is_alive():
                thread.join(10)
        self.runtime.close()

    # -- using it -------------------------------------------------------------------------------------------------

    def run(self, definition: Definition, inputs: dict[str, Any] | None = None, **options: Any) -> str:
        starter = options.pop("starter", Starter("acme", "core", "key1"))
        run_id, _ = self.engine.commands.start(
            definition, inputs or {}, starter, trace_id=new_trace_id(),
            traceparent=f"00-{new_trace_id()}-{new_span_id()}-01", **options,
        )  # fmt: skip
        return run_id

    def row(self, run_id: str) -> Any:
        with self.database.connect() as connection:
            return connection.execute(select(runs).where(runs.c.id == run_id)).one()

    def wait(self, run_id: str, *states: str, seconds: float = 60) -> str:
        wanted = states or ("completed", "failed", "cancelled", "needs_review")
        deadline = time.monotonic() + seconds
        while (state := self.row(run_id).state) not in wanted:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"run is {state}, wanted {wanted}: {self.states(run_id)} {self.types(run_id)}"
                )
            time.sleep(0.005)
        return str(state)

    def called_by(self, run_id: str) -> str:
        """The first run that a run has called; empty when there is none."""
        with self.database.connect() as connection:
            found = connection.scalar(select(runs.c.id).where(runs.c.called_by == run_id))
        return found or ""

    def outputs(self, run_id: str) -> Any:
        row = self.row(run_id)
        with self.database.connect() as connection:
            return self.engine.store.values.load(connection, row.tenant, row.outputs_ref)

    def steps(self, run_id: str) -> dict[str, Any]:
        with self.database.connect() as connection:
            return {
                row.path: row for row in connection.execute(select(steps).where(steps.c.run_id == run_id))
            }

    def states(self, run_id: str) -> dict[str, str]:
        return {path: row.state for path, row in self.steps(run_id).items()}

    def events(self, run_id: str) -> list[Any]:
        with self.database.connect() as connection:
            return list(
                connection.execute(select(events).where(events.c.run_id == run_id).order_by(events.c.seq))
            )

    def types(self, run_id: str) -> list[str]:
        return [f"{row.type} {row.path or ''}".strip() for row in self.events(run_id)]

    def effects(self, run_id: str) -> dict[str, Any]:
        with self.database.connect() as connection:
            return {
                row.key: row for row in connection.execute(select(effects).where(effects.c.run_id == run_id))
            }


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait for a condition; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError("the condition did not come true in time")
        time.sleep(0.005)
    return value
