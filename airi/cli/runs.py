"""``airi run list|show|watch|approve|cancel|resume``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from airi.cli.client import Client, Event, tenant_client
from airi.cli.output import line, moment, show, table, usd
from airi.cli.runner import NoError, Parser, command, group

Json = dict[str, Any]
ENDED = ("completed", "failed", "cancelled")
_MARKS = {
    "succeeded": "✓",
    "completed": "✓",
    "failed": "✗",
    "running": "▸",
    "waiting": "…",
    "needs_review": "?",
    "cancelled": "–",
    "skipped": "–",
}
_REDRAW_S = 0.2
_RECONNECTS = 20


def render(run: Json) -> str:
    """Return a run as a tree: its state and cost, each step with its own, and what waits for a person."""
    spent = usd(run["spent_usd_micros"])
    budget = f" of {usd(run['budget_usd_micros'])}" if run["budget_usd_micros"] else ""
    lines = [
        f"{run['id']}  {run['workflow']}  {run['state']}  {spent}{budget}, {run['spent_tokens']:,} tokens"
    ]
    lines += [_step(step) for step in run["steps"]]
    lines += [f"  waits for {item['role']}: {item['message'] or item['step']}" for item in run["approvals"]]
    lines += [f"  needs review: {item['name']} ({item['key']})" for item in run["reviews"]]
    if run["error"]:
        lines.append(f"  {_words(run['error'])}")
    if run["state"] == "completed" and run["outputs"] is not None:
        lines.append(json.dumps(run["outputs"], indent=2, ensure_ascii=False))
    return "\n".join(lines)


def _step(step: Json) -> str:
    indent = "    " if "item" in step else "  "
    mark = _MARKS.get(step["state"], "·")
    facts = [step["state"]]
    if step.get("started_at") and step.get("finished_at"):
        facts.append(f"{(step['finished_at'] - step['started_at']) / 1_000:.1f} s")
    if step.get("attempt", 0) > 1:
        facts.append(f"attempt {step['attempt']}")
    if step.get("cost_usd_micros"):
        facts.append(usd(step["cost_usd_micros"]))
    if step.get("error"):
        facts.append(_words(step["error"]))
    return f"{indent}{mark} {step['path']:<24} {', '.join(facts)}"


def _words(error: Any) -> str:
    return ": ".join(str(part) for part in error.values() if part) if isinstance(error, dict) else str(error)


def watch(client: Client, run_id: str, *, quiet: bool = False) -> Json:
    """Follow a run to its end and return it: a tree that is redrawn on a terminal, a line an event elsewhere."""
    picture = _Picture(client, run_id) if sys.stdout.isatty() and not quiet else None
    for event in _events(client, run_id):
        if picture is not None:
            picture.draw()
        elif not quiet:
            line(_event(event))
            if event.name == "step.waiting" and (event.data.get("data") or {}).get("wait") == "approval":
                line(f"          it waits for a person: airi run approve {run_id}   (or --reject)")
        if str(event.data.get("type", event.name)).removeprefix("run.") in ENDED:
            break
    run: Json = client.call("GET", f"/v1/runs/{run_id}")
    if picture is not None:
        picture.clear()
    return run


def _events(client: Client, run_id: str) -> Iterator[Event]:
    """Yield a run's events, each once, over as many connections as it takes."""
    last = "0"
    failures = 0
    while True:
        try:
            for event in client.events(f"/v1/runs/{run_id}/events", last):
                failures = 0
                if isinstance(event.data, dict):
                    last = event.id or last
                    yield event
        except NoError:
            failures += 1
            if failures > _RECONNECTS:
                raise
        if client.call("GET", f"/v1/runs/{run_id}")["state"] in ENDED and failures == 0:
            return
        time.sleep(_REDRAW_S)


def _event(event: Event) -> str:
    data = dict(event.data.get("data") or {})
    if "worker" in data:  # HOST.BOOT.NAMESPACE/PID/START: what a person can use of it
        host, _, rest = str(data["worker"]).partition("/")
        data["worker"] = f"{host.partition('.')[0]}/{rest.partition('/')[0]}"
    more = ", ".join(f"{key} {value}" for key, value in data.items() if value not in (None, ""))
    at = event.data.get("at")
    step = event.data.get("step") or ""
    return f"{moment(at)[11:19] if at else '':8}  {event.data.get('type', event.name):<18} {step:<24} {more}".rstrip()


class _Picture:
    """The tree on a terminal, drawn over itself."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._path = f"/v1/runs/{run_id}"
        self._height = 0
        self._drawn_at = 0.0

    def draw(self) -> None:
        if time.monotonic() - self._drawn_at < _REDRAW_S:
            return
        text = render(self._client.call("GET", self._path))
        self.clear()
        line(text)
        self._height = text.count("\n") + 1
        self._drawn_at = time.monotonic()

    def clear(self) -> None:
        if self._height:
            sys.stdout.write(f"\x1b[{self._height}A\x1b[J")
            self._height = 0


def finish(arguments: argparse.Namespace, run: Json) -> int:
    """Print a run that has ended; 0 when it completed."""
    show(arguments, run, lambda: render(run))
    return 0 if run["state"] == "completed" else 1


def _show(arguments: argparse.Namespace) -> int:
    run = tenant_client().call("GET", f"/v1/runs/{arguments.run}")
    show(arguments, run, lambda: render(run))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    query = {"workflow": arguments.workflow, "state": arguments.state, "limit": arguments.limit}
    runs = tenant_client().call("GET", "/v1/runs", query=query)["data"]
    columns = ("run", "workflow", "state", "cost", "created")
    rows = [
        (run["id"], run["workflow"], run["state"], usd(run["spent_usd_micros"]), moment(run["created_at"]))
        for run in runs
    ]
    show(arguments, runs, lambda: table(columns, rows, empty="no runs"))
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    return finish(arguments, watch(tenant_client(), arguments.run, quiet=arguments.output == "json"))


def _cancel(arguments: argparse.Namespace) -> int:
    run = tenant_client().call("POST", f"/v1/runs/{arguments.run}/cancel")
    in_flight = run.get("in_flight") or []
    show(
        arguments, run,
        lambda: f"{run['id']}: {run['state']}; no new effect starts"
        + (f"; under way before: {', '.join(map(str, in_flight))}" if in_flight else ""),
    )  # fmt: skip
    return 0


def _approve(arguments: argparse.Namespace) -> int:
    body = {"step": arguments.step, "approved": not arguments.reject, "comment": arguments.comment}
    run = tenant_client().call("POST", f"/v1/runs/{arguments.run}/approve", body)
    show(
        arguments,
        run,
        lambda: f"{run['id']}: {'rejected' if arguments.reject else 'approved'}; {run['state']}",
    )
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    body: Json = {"step": arguments.step, "action": arguments.action}
    if arguments.result is not None:
        try:
            body["output"] = json.loads(arguments.result)
        except ValueError as error:
            raise NoError(f"--result is not JSON: {error}") from error
    run = tenant_client().call("POST", f"/v1/runs/{arguments.run}/resume", body)
    show(
        arguments,
        run,
        lambda: f"{run['id']}: {run['state']}; {', '.join(run.get('resumed') or []) or 'going on'}",
    )
    return 0


def _one(name: str, summary: str, example: str, run: Any) -> Parser:
    parser = command(f"run {name}", summary, example, run)
    parser.add_argument("run", help="the run's id, run_…")
    return parser


def _list_parser() -> Parser:
    parser = command("run list", "List runs, newest first.", "airi run list --state failed", _list)
    parser.add_argument("--workflow")
    parser.add_argument("--state", help="queued, running, waiting, completed, failed, cancelled …")
    parser.add_argument("--limit", type=int, default=20)
    return parser


def _approve_parser() -> Parser:
    parser = _one(
        "approve",
        "Answer what a run asks of a person.",
        "airi run approve run_0198 --comment 'looks right'",
        _approve,
    )
    parser.add_argument("--step", help="which one, when several wait")
    parser.add_argument("--reject", action="store_true", help="say no")
    parser.add_argument("--comment", default="")
    return parser


def _resume_parser() -> Parser:
    parser = _one(
        "resume",
        "Go on with a run that failed, or settle a step that needs review: 'retry' does it again, 'done' says that it "
        "happened (with --result), 'fail' that it did not.",
        "airi run resume run_0198 --step charge --action done --result '{\"id\": 7}'",
        _resume,
    )
    parser.add_argument("--step")
    parser.add_argument("--action", choices=("retry", "done", "fail"), default="retry")
    parser.add_argument("--result", metavar="JSON", help="what the step brought, with --action done")
    return parser


def _parser() -> Parser:
    parts = [
        _one("show", "Show a run: its steps, cost, and what it waits for.", "airi run show run_0198", _show),
        _one(
            "watch",
            "Follow a run to its end. Exit code 0 when it completed.",
            "airi run watch run_0198",
            _watch,
        ),
        _list_parser(),
        _approve_parser(),
        _one(
            "cancel",
            "Stop a run; no new effect starts after this returns.",
            "airi run cancel run_0198",
            _cancel,
        ),
        _resume_parser(),
    ]
    return group("run", "Show, watch, approve, cancel and resume runs.", parts)


PARSERS = {"run": _parser}
