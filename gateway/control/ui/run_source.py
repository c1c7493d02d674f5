"""From the run service's plain data to the views that the templates show; every question within the reader's tenant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from gateway.control.auth import Principal
from gateway.control.services import Services
from gateway.control.ui.run_view import ApprovalView, ReviewView, RunView, StepView

_PAGE = 50
_DECIDES_ALWAYS = ("org_admin", "platform_admin")


def _tenant(who: Principal) -> str | None:
    """Return whose runs: ``None`` is every tenant's, for the platform alone."""
    return None if who.platform else who.tenant or ""


class RunSource:
    """Blocking; call it in a thread."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def list(self, who: Principal, state: str, workflow: str, before: str) -> tuple[list[RunView], str]:
        """Return a page of runs, newest first, and the cursor of the next page (empty on the last)."""
        found = self._services.run_service.list_runs(
            _tenant(who),
            workflow=workflow or None,
            state=state or None,
            before=before or None,
            limit=_PAGE + 1,
        )
        shown = found[:_PAGE]
        return [_run(item) for item in shown], shown[-1]["id"] if len(found) > _PAGE else ""

    def get(self, who: Principal, run_id: str) -> RunView:
        """Return one run with its steps and what waits for a person."""
        item = self._services.run_service.get_run(run_id, _tenant(who))
        view = _run(item)
        view.inputs, view.outputs = item["inputs"], item["outputs"]
        view.steps = [_step(step) for step in item["steps"]]
        view.approvals = [
            ApprovalView(
                one["step"], one["role"], one["message"], who.role in (one["role"], *_DECIDES_ALWAYS)
            )
            for one in item["approvals"]
        ]
        view.reviews = [
            ReviewView(one["key"], one["path"], one["name"], one["effect_class"]) for one in item["reviews"]
        ]
        return view

    def cancel(self, who: Principal, run_id: str) -> None:
        """Stop a run."""
        self._services.run_service.cancel(run_id, _tenant(who), by=who.actor)

    def decide(self, who: Principal, run_id: str, step: str, approved: bool, comment: str) -> None:
        """Answer an approval; the service checks that the reader's role may."""
        self._services.run_service.approve(
            run_id, _tenant(who), by=who.actor, role=who.role, step=step, approved=approved, comment=comment
        )

    def review(
        self, who: Principal, run_id: str, step: str, action: Literal["done", "retry", "fail"]
    ) -> None:
        """Settle an effect of which nobody knew whether it happened."""
        self._services.run_service.resume(run_id, _tenant(who), by=who.actor, step=step, action=action)


def _seconds(ms: int | None) -> float:
    return (ms or 0) / 1_000


def _error(error: Any) -> str:
    """Return an error of the engine in words: its sentence, with its code in front where it has one."""
    if not error:
        return ""
    if isinstance(error, Mapping):
        code = str(error.get("class") or error.get("code") or "")
        message = str(error.get("message") or "")
        return f"{code}: {message}" if code and message else message or code
    return str(error)


def _run(item: Mapping[str, Any]) -> RunView:
    return RunView(
        id=item["id"],
        workflow=item["workflow"],
        state=item["state"],
        tenant=item["tenant"],
        team=item["team"] or "",
        trace_id=item["trace_id"],
        created_s=_seconds(item["created_at"]),
        started_s=_seconds(item["started_at"]),
        finished_s=_seconds(item["finished_at"]),
        spent_usd_micros=item["spent_usd_micros"],
        budget_usd_micros=item["budget_usd_micros"],
        tokens=item["spent_tokens"],
        error=_error(item["error"]),
    )


def _step(item: Mapping[str, Any]) -> StepView:
    return StepView(
        path=item["path"],
        kind=item["kind"],
        state=item["state"],
        needs=tuple(item.get("needs", ())),
        depth=1 if "item" in item else 0,
        attempt=item.get("attempt") or 0,
        failures=item.get("failures") or 0,
        crashes=item.get("crashes") or 0,
        cost_usd_micros=item.get("cost_usd_micros") or 0,
        tokens=item.get("tokens") or 0,
        started_s=_seconds(item.get("started_at")),
        finished_s=_seconds(item.get("finished_at")),
        error=_error(item.get("error")),
        total=item.get("total"),
        remaining=item.get("remaining"),
    )
