"""The list of runs and the page of one run: its graph, its steps, its calls, and the decisions that people take."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from airi.errors import NotFoundError
from gateway.control.auth import Principal, csrf_token, require
from gateway.control.reading import Records
from gateway.control.services import Services
from gateway.control.ui.frame import Frame
from gateway.control.ui.pages import PageRoute, link, render, wants_fragment
from gateway.control.ui.run_source import RunSource
from gateway.control.ui.run_view import RunView
from gateway.control.ui.waterfall import WIDTH, of_trace
from observability.record import CallRecord
from observability.store import Trace

_PATH = "/ui/runs"
_STATES = (
    ("", "All"),
    ("running", "Running"),
    ("waiting", "Waiting"),
    ("needs_review", "Needs review"),
    ("completed", "Completed"),
    ("failed", "Failed"),
    ("cancelled", "Cancelled"),
)
_REVIEW_CHOICES = (
    ("done", "It did happen"),
    ("retry", "It did not: do it"),
    ("fail", "It did not: fail the step"),
)


def router(services: Services, records: Records, frame: Frame) -> APIRouter:
    """Return the routes of runs."""
    routes = APIRouter(route_class=PageRoute, include_in_schema=False)
    source = RunSource(services)
    reader = Depends(require(services, "runs.read"))
    _add_list(routes, source, frame, reader)
    _add_page(routes, services, source, records, frame, reader)
    _add_decisions(routes, source, Depends(require(services, "runs.write")))
    return routes


def _add_list(routes: APIRouter, source: RunSource, frame: Frame, reader: Any) -> None:
    @routes.get(_PATH)
    async def runs(
        request: Request, state: str = "", workflow: str = "", cursor: str = "", who: Principal = reader
    ) -> Response:
        found, following = await asyncio.to_thread(source.list, who, state, workflow, cursor)
        given = {"state": state, "workflow": workflow}
        context: dict[str, Any] = {
            "runs": found,
            "state": state,
            "workflow": workflow,
            "without_workflow": link(_PATH, given, workflow=""),
            "first_href": link(_PATH, given) if cursor else "",
            "next_href": link(_PATH, given, cursor=following) if following else "",
            "states": [(text, link(_PATH, given, state=value), value == state) for value, text in _STATES],
        }
        if wants_fragment(request):
            return render("runs_list.html", who=who, now=time.time(), **context)
        return render("runs.html", **await frame.context(request, who, "runs", "Runs"), **context)


def _add_page(
    routes: APIRouter, services: Services, source: RunSource, records: Records, frame: Frame, reader: Any
) -> None:
    @routes.get(_PATH + "/{run_id}")
    async def run(request: Request, run_id: str, who: Principal = reader) -> Response:
        view = await asyncio.to_thread(source.get, who, run_id)
        context = _run_context(view, await records.run(who, run_id), who)
        if wants_fragment(request):
            csrf = csrf_token(services, request)
            return render("run_body.html", who=who, now=time.time(), csrf=csrf, **context)
        return render("run.html", **await frame.context(request, who, "runs", view.workflow), **context)


def _add_decisions(routes: APIRouter, source: RunSource, writer: Any) -> None:
    @routes.post(_PATH + "/{run_id}/cancel")
    async def cancel(run_id: str, who: Principal = writer) -> Response:
        await asyncio.to_thread(source.cancel, who, run_id)
        return _back(run_id)

    @routes.post(_PATH + "/{run_id}/decide")
    async def decide(
        run_id: str,
        decision: Annotated[Literal["approve", "reject"], Form()],
        step: Annotated[str, Form(max_length=160)],
        comment: Annotated[str, Form(max_length=500)] = "",
        who: Principal = writer,
    ) -> Response:
        await asyncio.to_thread(source.decide, who, run_id, step, decision == "approve", comment)
        return _back(run_id)

    @routes.post(_PATH + "/{run_id}/review")
    async def review(
        run_id: str,
        decision: Annotated[Literal["done", "retry", "fail"], Form()],
        step: Annotated[str, Form(max_length=160)],
        who: Principal = writer,
    ) -> Response:
        await asyncio.to_thread(source.review, who, run_id, step, decision)
        return _back(run_id)


def _back(run_id: str) -> Response:
    if not run_id.replace("_", "").isalnum():
        raise NotFoundError("There is no such run.")
    return RedirectResponse(f"{_PATH}/{run_id}", 303)


def _run_context(view: RunView, found: Trace, who: Principal) -> dict[str, Any]:
    """Return the page's context; what the records know (calls, times) is put beside what the engine knows."""
    calls_of: dict[str, list[CallRecord]] = {}
    for stored in found.calls:
        calls_of.setdefault(stored.record.step, []).append(stored.record)
    rows, left_out = of_trace(found)
    return {
        "run": view,
        "drawing": view.drawing(),
        "calls": found.calls,
        "calls_of": calls_of,
        "repeated": sum(stored.record.replayed for stored in found.calls),
        "rows": rows,
        "left_out": left_out,
        "bar_width": WIDTH,
        "may_write": who.may("runs.write"),
        "review_choices": _REVIEW_CHOICES,
    }
