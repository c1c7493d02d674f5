"""Runs for everybody outside of this room: HTTP routes, the dashboard, the command line. Blocking; use threads.

``tenant`` is whose runs may be seen: a tenant's name, or ``None`` for the platform, which sees all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jsonschema
import msgspec
from sqlalchemy import Engine as Database
from sqlalchemy import Row, select

from agents import checking, views
from agents.caretaker import Caretaker
from agents.celery_app import Sender, make_app
from agents.checking import Catalogue
from agents.commands import Starter
from agents.definition import Definition
from agents.engine import Engine
from agents.errors import InputError, RunsBusyError, TooDeepError, UnknownRunError, UnknownWorkflowError
from agents.schema import events, runs
from agents.spans import Spans, SpanSink
from agents.tools.functions import load_tools
from agents.tools.toolbox import ToolBox
from airi.config.document import ConfigDocument
from airi.config.kinds import Model, Workflow
from airi.config.store import ConfigStore
from airi.content import ContentStore
from airi.errors import PermissionDeniedError
from airi.ids import new_span_id, new_trace_id
from airi.keyring import KeyRing
from airi.settings import Settings
from observability import tracecontext

MAX_DEPTH = 4
"""How deep workflows may call each other as models."""
_EVENTS_AT_ONCE = 500
_RUNS_AT_ONCE = 100
_DECIDES_ALWAYS = ("org_admin", "platform_admin")


class RunService:
    """Start, look at, decide, stop. ``caretaker`` publishes what this process leaves in the outbox."""

    def __init__(
        self,
        engine: Engine,
        document: Callable[[], ConfigDocument],
        box: ToolBox | None = None,
        caretaker: Caretaker | None = None,
    ) -> None:
        self.engine = engine
        self._document = document
        self._box = box
        self._caretaker = caretaker
        self._checked: dict[str, tuple[Workflow, Definition]] = {}

    def start_background(self) -> None:
        """Begin to publish hints, wake timers and reap."""
        if self._caretaker is not None:
            self._caretaker.start()

    def close(self) -> None:
        """Stop what :meth:`start_background` began."""
        if self._caretaker is not None:
            self._caretaker.close()

    # -- workflows ------------------------------------------------------------------------------------------------

    def catalogue(self, document: ConfigDocument | None = None) -> Catalogue:
        """What workflows may name now."""
        current = document or self._document()
        models = frozenset(model.metadata.name for model in current.all(Model))
        return Catalogue(models, self._box.names() if self._box is not None else None)

    def workflow(self, name: str) -> Definition:
        """The checked definition of a workflow; :class:`UnknownWorkflowError`, ``ConfigError``."""
        document = self._document()
        resource = document.get(Workflow, name)
        if resource is None:
            known = [workflow.metadata.name for workflow in document.all(Workflow)]
            raise UnknownWorkflowError(f"there is no workflow {name!r}{checking.did_you_mean(name, known)}")
        kept = self._checked.get(name)
        if kept is None or kept[0] is not resource:
            kept = (resource, checking.parse(resource, catalogue=self.catalogue(document)))
            self._checked[name] = kept
        return kept[1]

    def workflows(self) -> list[dict[str, Any]]:
        """All workflows, with the schema of their inputs."""
        return [describe(resource) for resource in self._document().all(Workflow)]

    # -- starting -------------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        inputs: Any,
        starter: Starter,
        *,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
        budget_usd_micros: int | None = None,
    ) -> tuple[str, bool]:
        """Start a run; return its id and whether it is new. ``budget_usd_micros`` lowers the workflow's own budget."""
        if starter.depth > MAX_DEPTH:
            raise TooDeepError(f"workflows called each other as models more than {MAX_DEPTH} deep")
        definition = self.workflow(name)
        given = checked_inputs(definition, inputs)
        caller = tracecontext.parse(traceparent)
        trace_id = caller.trace_id if caller else new_trace_id()
        flags = caller.flags if caller else tracecontext.SAMPLED
        return self.engine.commands.start(
            definition, given, starter, idempotency_key=idempotency_key, trace_id=trace_id,
            traceparent=tracecontext.format_traceparent(trace_id, new_span_id(), flags),
            budget_usd_micros=budget_usd_micros,
        )  # fmt: skip

    def nested(self, starter: Starter, run_id: str) -> Starter:
        """The starter of a run that a step of the run ``run_id`` asks for."""
        return replace(starter, depth=self._row(run_id, starter.tenant).depth + 1, called_by=run_id)

    # -- looking --------------------------------------------------------------------------------------------------

    def _row(self, run_id: str, tenant: str | None) -> Row[Any]:
        with self.engine.store.engine.connect() as connection:
            row = connection.execute(select(runs).where(runs.c.id == run_id)).one_or_none()
        if row is None or (tenant is not None and row.tenant != tenant):
            raise UnknownRunError(f"there is no run {run_id!r}")
        return row

    def summary(self, run_id: str, tenant: str | None = None) -> dict[str, Any]:
        """A run without steps and content."""
        return views.summary(self._row(run_id, tenant))

    def get_run(self, run_id: str, tenant: str | None = None) -> dict[str, Any]:
        """A run with steps, inputs, outputs, and whatever waits for a person."""
        row = self._row(run_id, tenant)
        definition = self.engine.definition_of(row.definition_id)
        with self.engine.store.engine.connect() as connection:
            return views.full(connection, self.engine.store.values, row, definition)

    def effects(self, run_id: str, tenant: str | None = None) -> list[dict[str, Any]]:
        """Every effect of a run: what was called, under which key, how often."""
        self._row(run_id, tenant)
        with self.engine.store.engine.connect() as connection:
            return views.effects_of(connection, run_id)

    def step_output(self, run_id: str, path: str, tenant: str | None = None) -> Any:
        """The output of one step."""
        row = self._row(run_id, tenant)
        with self.engine.store.engine.connect() as connection:
            return views.step_output(connection, self.engine.store.values, row, path)

    def list_runs(
        self,
        tenant: str | None = None,
        *,
        workflow: str | None = None,
        state: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> list[dict[str, Any]]:
        """Runs, newest first; ``before`` is the id of the last run of the page before."""
        wanted = (
            select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(min(limit, _RUNS_AT_ONCE))
        )
        for column, value in ((runs.c.tenant, tenant), (runs.c.workflow, workflow), (runs.c.state, state)):
            if value is not None:
                wanted = wanted.where(column == value)
        if before is not None:
            last = self._row(before, tenant)
            older = (runs.c.created_at == last.created_at) & (runs.c.id < last.id)
            wanted = wanted.where((runs.c.created_at < last.created_at) | older)
        with self.engine.store.engine.connect() as connection:
            return [views.summary(row) for row in connection.execute(wanted)]

    def events(self, run_id: str, after: int, tenant: str | None = None) -> list[dict[str, Any]]:
        """The events after a number, in order, at most 500 at once. They hold no content."""
        self._row(run_id, tenant)
        wanted = (
            select(events)
            .where(events.c.run_id == run_id, events.c.seq > after)
            .order_by(events.c.seq)
            .limit(_EVENTS_AT_ONCE)
        )
        with self.engine.store.engine.connect() as connection:
            return [
                {
                    "seq": row.seq, "type": row.type, "step": row.path, "at": row.created_at,
                    "data": msgspec.json.decode(row.data),
                }
                for row in connection.execute(wanted)
            ]  # fmt: skip

    def progress(self, run_ids: list[str]) -> dict[str, tuple[int, str]]:
        """The last event's number and the state of each run."""
        wanted = select(runs.c.id, runs.c.seq, runs.c.state).where(runs.c.id.in_(run_ids))
        with self.engine.store.engine.connect() as connection:
            return {row.id: (row.seq, row.state) for row in connection.execute(wanted)}

    # -- deciding -------------------------------------------------------------------------------------------------

    def cancel(self, run_id: str, tenant: str | None = None, *, by: str) -> dict[str, Any]:
        """Stop a run. Once this has returned no new effect starts; ``in_flight`` had started before."""
        self._row(run_id, tenant)
        in_flight = self.engine.commands.cancel(run_id, by)
        return {**self.summary(run_id, tenant), "in_flight": in_flight}

    def approve(
        self,
        run_id: str,
        tenant: str | None = None,
        *,
        by: str,
        role: str,
        step: str | None = None,
        approved: bool = True,
        comment: str = "",
    ) -> dict[str, Any]:
        """Answer an approval (``approved=False`` rejects); ``role`` is the role of who answers."""
        waiting = [item for item in self.get_run(run_id, tenant)["approvals"] if step in (None, item["step"])]
        for item in waiting:
            if role not in (item["role"], *_DECIDES_ALWAYS):
                raise PermissionDeniedError(f"step {item['step']!r} waits for a key with role {item['role']}")
        self.engine.commands.decide(run_id, step, approved=approved, by=by, comment=comment[:2_000])
        return self.summary(run_id, tenant)

    def resume(
        self,
        run_id: str,
        tenant: str | None = None,
        *,
        by: str,
        step: str | None = None,
        action: Literal["retry", "done", "fail"] = "retry",
        output: Any = None,
    ) -> dict[str, Any]:
        """Settle steps that need review (``retry``, ``done`` with ``output``, ``fail``), or try a failed run again."""
        self._row(run_id, tenant)
        steps = self.engine.commands.resume(run_id, step, action, output, by)
        return {**self.summary(run_id, tenant), "resumed": steps}


def describe(resource: Workflow) -> dict[str, Any]:
    """A workflow in a list."""
    body = resource.model_extra or {}
    return {
        "object": "workflow",
        "name": resource.metadata.name,
        "description": resource.metadata.description,
        "inputs": body.get("inputs", {"type": "object"}),
        "model": f"workflow/{resource.metadata.name}",
    }


def checked_inputs(definition: Definition, inputs: Any) -> dict[str, Any]:
    """The inputs with defaults filled in; :class:`InputError` naming what is wrong, never a value."""
    if not isinstance(inputs, dict):
        raise InputError("the inputs must be an object", param="inputs")
    schema = definition.body.inputs
    properties = schema.get("properties", {})
    defaults = {
        name: item["default"]
        for name, item in properties.items()
        if isinstance(item, dict) and "default" in item
    }
    given = {**defaults, **inputs}
    fault = next(jsonschema.Draft202012Validator(schema).iter_errors(given), None)
    if fault is not None:
        place = ".".join(["inputs", *map(str, fault.absolute_path)])
        raise InputError(f"{place}: {checking.rule_of(fault)}", param=place)
    return given


def build(
    settings: Settings,
    ring: KeyRing,
    runs_database: Database,
    config_store: ConfigStore,
    sink: SpanSink | None = None,
) -> RunService:
    """The service of the control plane, over an already migrated runs database; loads the function tools."""
    load_tools()  # not to call them, but to know which there are
    engine = Engine(runs_database, ContentStore(runs_database, ring))
    document = config_store.current  # never an older one: what was applied just now is what is started
    engine.store.on_ended = Spans(sink, "control").run
    caretaker = Caretaker(
        engine.store,
        engine.commands,
        engine.leases,
        Sender(partial(make_app, settings.effective_broker_url)),
        engine.tuning,
    )
    return RunService(engine, document, ToolBox(document), caretaker)


__all__ = ["RunService", "RunsBusyError", "Starter", "build"]
