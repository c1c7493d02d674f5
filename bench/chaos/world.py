"""A tree under load: runs of both examples (and of one that must not repeat itself), a witness, a person who approves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench import tree
from tests.support.live import ROOT, Live, wait_until

_DOCUMENTS = (
    "examples/workflows/research.yaml",
    "examples/workflows/support_triage.yaml",
    "bench/chaos/payout.yaml",
)
_ENDED = ("completed", "failed", "cancelled")
_TUNING = {
    "AIRI_RUNS_LEASE_MS": "3000",
    "AIRI_RUNS_REAP_MS": "200",
    "AIRI_RUNS_REPUBLISH_MS": "2000",
    "AIRI_RUNS_DRAIN_MS": "3000",
}
"""Shorter than in production, so that what waits for a lease or for a message's repetition does so within the hour."""
_SLOWLY = "0.25"
"""Speed of the simulated engine: its answers take seconds, so that what is killed is in the middle of something."""
_STARTERS = 8
PATIENCE_S = 120.0


@dataclass
class Batch:
    """Runs that are in flight while something is killed."""

    fault: str
    runs: dict[str, str] = field(default_factory=dict)
    """Workflow by run."""
    states: dict[str, str] = field(default_factory=dict)
    reviewed: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class World:
    """Everything that a scenario works on."""

    def __init__(self, live: Live, log: Path) -> None:
        self.live = live
        self.key = live.key
        self._log = log
        self._workers: list[subprocess.Popen[bytes]] = []
        self._number = 0

    # -- asking, patiently: gateway and control plane are being killed

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Ask until somebody answers with something else than "come again"."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError), self.live.client(self.key) as client:
                answer = client.request(method, path, json=body, headers=headers)
                if answer.status_code not in (502, 503, 504):
                    return answer
            if time.monotonic() > deadline:
                raise RuntimeError(f"nobody answers {method} {path}")
            time.sleep(0.1)

    def start(self, batch: Batch, count: int) -> None:
        """Start runs, each with a key of its own, so that a start that is asked for twice is one run."""
        numbers = range(self._number, self._number + count)
        self._number += count
        with ThreadPoolExecutor(_STARTERS) as starters:
            batch.runs.update(starters.map(self._start_one, numbers))

    def _start_one(self, number: int) -> tuple[str, str]:
        workflow, inputs = "research", {"topic": f"topic {number}"}
        if number % 5 in (1, 3):
            workflow, inputs = "support-triage", {"ticket": "I was charged twice", "customer": f"c{number}"}
        elif number % 5 == 4:
            workflow, inputs = "payout", {"customer": f"c{number}"}
        path = f"/v1/workflows/{workflow}/runs"
        answer = self.ask("POST", path, {"inputs": inputs}, **{"idempotency-key": f"start-{number}"})
        if answer.status_code not in (200, 201):
            raise RuntimeError(f"a run was not accepted: {answer.text}")
        return answer.json()["id"], workflow

    def look(self, batch: Batch) -> None:
        """Read the states; approve what waits, settle what needs review as a person would who has looked it up."""
        found = self.ask("GET", "/v1/runs?limit=100").json()["data"]
        for run in found:
            if run["id"] not in batch.runs:
                continue
            batch.states[run["id"]] = run["state"]
            if run["state"] == "waiting":
                self.ask("POST", f"/v1/runs/{run['id']}/approve", {})
            elif run["state"] == "needs_review":
                settled = self.ask(
                    "POST",
                    f"/v1/runs/{run['id']}/resume",
                    {"action": "done", "output": {"paid": "looked up"}},
                )
                batch.reviewed += settled.status_code == 200

    def finish(self, batch: Batch) -> None:
        """Wait until every run has ended, or patience has."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self.look(batch)
            if len(batch.states) == len(batch.runs) and all(
                state in _ENDED for state in batch.states.values()
            ):
                return
            time.sleep(0.2)

    def in_flight(self, batch: Batch) -> int:
        """How many of the runs have not ended, from the database itself."""
        ids = ",".join(f"'{run}'" for run in batch.runs)
        rows = self.sql("runs", f"SELECT count(*) FROM runs WHERE id IN ({ids}) AND finished_at IS NULL")
        return int(rows[0][0])

    def sql(self, name: str, statement: str) -> list[Any]:
        """Read one of the tree's databases: ``airi`` or ``runs``."""
        with contextlib.closing(sqlite3.connect(self.live.home / f"{name}.db", timeout=30)) as connection:
            return connection.execute(statement).fetchall()

    # -- workers beside the tree's own, as on a second machine

    def worker(self, fault: str = "") -> subprocess.Popen[bytes]:
        """Start a worker; ``fault`` names the point at which it kills itself (``response:2``)."""
        reading, writing = os.pipe()
        environment = {**self.live.environment, "AIRI_READY_FD": str(writing), "AIRI_FAULT_POINT": fault}
        with (self.live.home / "logs" / "worker-beside.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "agents.worker"],
                cwd=ROOT,
                env=environment,
                pass_fds=(writing,),
                stdout=log,
                stderr=log,
            )
        os.close(writing)
        self._workers.append(process)
        with os.fdopen(reading, "rb") as pipe:
            if pipe.read(6) != b"READY\n":
                raise RuntimeError("a worker did not start")
        return process

    def holds(self, process: int) -> int:
        """How many steps a worker process holds leases of."""
        rows = self.sql("runs", f"SELECT count(*) FROM run_steps WHERE lease_owner LIKE '%/{process}/%'")
        return int(rows[0][0])

    def busy_worker(self) -> int:
        """Return the process id of the tree's worker once it works on something."""

        def busy() -> int:
            found = tree.pids(self.live, "worker")
            return found[0] if found and self.holds(found[0]) else 0

        return int(wait_until(busy, 30, 0.02))

    def dismiss(self) -> None:
        """End the workers that were started here."""
        for process in self._workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            if process.poll() is None:
                process.kill()
                process.wait(5)
        self._workers.clear()

    # -- what came of it

    def witnessed(self) -> tuple[Counter[str], Counter[str]]:
        """Return applied effects of keyed tools by key, and calls of unsafe tools by key."""
        applied: Counter[str] = Counter()
        unsafe: Counter[str] = Counter()
        for line in self._log.read_text().splitlines():
            call = json.loads(line)
            if call["kind"] == "keyed" and call["applied"]:
                applied[call["key"]] += 1
            elif call["kind"] == "unsafe":
                unsafe[call["key"]] += 1
        return applied, unsafe

    def paying(self) -> int:
        """How many calls of unsafe tools the witness has seen."""
        return sum(self.witnessed()[1].values())

    def model_calls(self, batch: Batch) -> dict[str, int]:
        """Count model calls of the batch: answers that runs have, calls that were made once more, whole answers paid for
        beyond one each, and calls that were paid for although they were cut short (their caller was killed)."""
        ids = ",".join(f"'{run}'" for run in batch.runs)
        answers, calls = self.sql(
            "runs",
            f"SELECT count(*), coalesce(sum(calls), 0) FROM run_effects WHERE kind = 'model' AND run_id IN ({ids})",
        )[0]
        whole, cut = self.sql(
            "airi",
            "SELECT count(*) FILTER (WHERE outcome = 'ok'), count(*) FILTER (WHERE outcome != 'ok') FROM ledger "
            f"WHERE cause != 'late' AND usd_micros > 0 AND run_id IN ({ids})",
        )[0]
        return {
            "model_answers": answers,
            "model_calls_repeated": calls - answers,
            "paid_again": max(0, whole - answers),
            "cut_short": cut,
        }


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start a witness and a tree as it is by default; stop everything at the end."""
    log = folder / "witness.jsonl"
    witness = subprocess.Popen(
        [sys.executable, "-m", "tests.agents.witness", "--log", str(log)], cwd=ROOT, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert witness.stdout is not None
        port = int(witness.stdout.readline())
        environment = {
            **_TUNING, "AIRI_SIM_SPEED": _SLOWLY, "WITNESS": f"http://127.0.0.1:{port}",
            "AIRI_TOOLS_PATH": str(ROOT / "bench" / "chaos" / "tools.py"),
        }  # fmt: skip
        config = "\n---\n".join((ROOT / name).read_text() for name in _DOCUMENTS)
        with Live(folder / "home", config, **environment) as live:
            made = World(live, log)
            try:
                yield made
            finally:
                made.dismiss()
    finally:
        witness.terminate()
        witness.wait(10)


class Approver:
    """Looks after a batch in the background while the scenario kills things."""

    def __init__(self, made: World, batch: Batch) -> None:
        self._made, self._batch = made, batch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            with contextlib.suppress(RuntimeError):
                self._made.look(self._batch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
