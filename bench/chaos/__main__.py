"""The fault matrix (``make chaos``): prints a table and one JSON line; ``--write`` puts both into docs/chaos.md.

    python -m bench.chaos [--quick] [--only TEXT] [--write]

Twenty runs of the example workflows are in flight; a process is killed with SIGKILL at a named point or time. Exit
code 1 when a run was lost, an effect applied twice, an unsafe call repeated, or the ledger does not balance.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import FOLDER, budget_race
from bench.chaos import scenarios
from bench.chaos.scenarios import Act
from bench.chaos.world import Approver, Batch, World, world
from tests.support.live import ROOT

PAGE = ROOT / "docs" / "chaos.md"
_MARK = "<!-- figures: written by python -m bench.chaos --write -->"
_COLUMNS = (
    "fault",
    "killed",
    "new",
    "in flight",
    "completed",
    "lost",
    "reviewed",
    "model calls",
    "repeated",
    "paid again",
    "cut short",
    "seconds",
)


def run(acts: dict[str, Act]) -> dict[str, Any]:
    """Play all scenarios on one tree; return what came of them."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="airi-chaos-", dir=FOLDER) as folder, world(Path(folder)) as made:
        batches = [_play(made, name, act) for name, act in acts.items()]
        books = budget_race.settled(made.live)
        rows = [_row(made, batch) for batch in batches]
        applied, unsafe = made.witnessed()
    return {
        "scenarios": rows,
        "runs": sum(len(batch.runs) for batch in batches),
        "lost": sum(row["lost"] for row in rows),
        "keyed_effects": len(applied),
        "applied_twice": sum(count > 1 for count in applied.values()),
        "triage_runs_without_effect": _without_effect(batches, applied),
        "unsafe_effects": len(unsafe),
        "unsafe_calls_most": max(unsafe.values(), default=0),
        "model_calls_repeated": sum(row["repeated"] for row in rows),
        "paid_again": sum(row["paid again"] for row in rows),
        "paid_and_cut_short": sum(row["cut short"] for row in rows),
        "ledger_balanced": books["balanced"],
        "leaked_holds": books["open_reservations"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _play(made: World, name: str, act: Act) -> Batch:
    batch = Batch(name)
    began = time.monotonic()
    with Approver(made, batch):
        batch.facts = act(made, batch)
    made.finish(batch)
    made.dismiss()
    batch.seconds = time.monotonic() - began
    sys.stderr.write(f"{name}: {batch.seconds:.0f} s\n")
    return batch


def _row(made: World, batch: Batch) -> dict[str, Any]:
    completed = sum(state == "completed" for state in batch.states.values())
    calls = made.model_calls(batch)
    return {
        "fault": batch.fault,
        "killed": batch.facts["killed"],
        "new": batch.facts["new"],
        "in flight": batch.facts["in_flight"],
        "completed": completed,
        "lost": len(batch.runs) - completed,
        "reviewed": batch.reviewed,
        "model calls": calls["model_answers"],
        "repeated": calls["model_calls_repeated"],
        "paid again": calls["paid_again"],
        "cut short": calls["cut_short"],
        "seconds": round(batch.seconds, 1),
        "not_completed": {run: made.ask("GET", f"/v1/runs/{run}").json().get("error") for run, state in batch.states.items() if state != "completed"},
    }  # fmt: skip


def _without_effect(batches: list[Batch], applied: dict[str, int]) -> int:
    """Count triage runs whose answer was never sent: an effect that is missing is as wrong as one too many."""
    sent = {key.partition(":")[0] for key in applied}
    return sum(
        workflow == "support-triage" and run not in sent
        for batch in batches
        for run, workflow in batch.runs.items()
    )


def problems(result: dict[str, Any]) -> list[str]:
    """Return what is not as it must be."""
    wrong = [
        name
        for name in ("lost", "applied_twice", "triage_runs_without_effect", "leaked_holds")
        if result[name]
    ]
    wrong += ["unsafe_calls_most"] if result["unsafe_calls_most"] > 1 else []
    wrong += [] if result["ledger_balanced"] else ["ledger_balanced"]
    for row in result["scenarios"]:
        old, new = row["killed"], row["new"]
        if old == new or not row["in flight"]:
            wrong.append(f"{row['fault']}: nothing was killed under runs in flight")
    return wrong


def table(result: dict[str, Any]) -> str:
    """Return the scenarios as Markdown."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cell(row[name]) for name in _COLUMNS) + " |" for row in result["scenarios"]]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _write(text: str) -> None:
    head, mark, _ = PAGE.read_text().partition(_MARK)
    if not mark:
        raise RuntimeError(f"{PAGE} has no place for figures")
    PAGE.write_text(f"{head}{_MARK}\n\n{text}\n")


def _race_lines(race: dict[str, Any]) -> str:
    shown = {name: value for name, value in race.items() if name not in ("undercharged_examples",)}
    return "```json\n" + json.dumps(shown, indent=1) + "\n```"


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one scenario, under a minute")
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    parser.add_argument(
        "--write", action="store_true", help="write docs/chaos.md (and hold the race on one budget too)"
    )
    options = parser.parse_args(arguments)
    acts = scenarios.quick() if options.quick else scenarios.matrix()
    result = run({name: act for name, act in acts.items() if options.only in name})
    wrong = problems(result)
    print(table(result))
    print(json.dumps({**result, "wrong": wrong}))
    if options.write:
        race = budget_race.run(budget_race.Race())
        wrong += budget_race.problems(race)
        summary = {name: value for name, value in result.items() if name != "scenarios"}
        figures = "```json\n" + json.dumps(summary, indent=1) + "\n```"
        _write(f"{table(result)}\n\n{figures}\n\n## One hard budget\n\n{_race_lines(race)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
