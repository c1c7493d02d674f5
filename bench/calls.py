"""What a call costs: CPU of the gateway's processes, latency, memory, against a bare forwarder in the same rounds."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from observability.record import CallRecord
from tests.support.live import ROOT, Live, free_port, wait_until

_record = msgspec.msgpack.Decoder(CallRecord)
GATEWAY_CORE, OTHER_CORE = 0, 1
CONNECTIONS = 64
STREAM_CHUNKS = 200
PROSE = (
    "The harbour was quiet that morning, and the keeper of the light wrote down what the night had brought: two ships "
    "from the north, a broken spar, and a letter that nobody had asked for. "
)
POLICIES = (
    ("no-mail-addresses", "redact", ["email"], "prompt", ["*"]),
    ("no-cards", "redact", ["card"], "prompt", ["*"]),
    ("no-secrets", "deny", ["secrets"], "prompt", ["*"]),
    ("no-accounts", "deny", ["iban"], "prompt", ["*"]),
    ("no-phones", "redact", ["phone"], "prompt", ["*"]),
    ("no-code-names", "deny", ["words"], "prompt", ["*"]),
    ("tools-for-some", "deny", [], "prompt", ["*"]),
    ("short-answers", "deny", [], "prompt", ["*"]),
    ("weekdays", "allow", [], "prompt", ["*"]),
    ("masked-answers", "redact", ["pii"], "response", ["guarded"]),
)
CONDITIONS = {
    "tools-for-some": '"dangerous" in call.tools && role != "platform_admin"',
    "short-answers": "call.max_tokens > 100000 && !model.simulated",
    "weekdays": 'team == "bench" && call.n < 4',
}


def config(upstream: int) -> str:
    """Return the configuration under test: five scopes with limits, ten rules, a priced model behind the mock."""
    documents: list[dict[str, Any]] = [
        {"kind": "Provider", "metadata": {"name": "mock"}, "base_url": f"http://127.0.0.1:{upstream}/v1", "max_connections": 2000},
        {
            "kind": "Tenant", "metadata": {"name": "bench"}, "limits": _limits(),
            "budgets": [{"name": "month", "usd": 100000}], "user_limits": _limits(),
            "model_limits": {"plain": _limits(), "guarded": _limits()},
            "teams": [{"name": "bench", "limits": _limits()}],
        },
    ]  # fmt: skip
    documents += [
        {
            "kind": "Model", "metadata": {"name": name}, "price": {"input": 0.1, "output": 0.4},
            "versions": [{"name": "v1", "targets": [{"provider": "mock", "model": "mock"}]}],
        }
        for name in ("plain", "guarded")
    ]  # fmt: skip
    documents += [_policy(*row) for row in POLICIES]
    return "\n---\n".join(json.dumps({"apiVersion": "airi/v1alpha1", **document}) for document in documents)


def _limits() -> dict[str, int]:
    return {
        "requests_per_minute": 50_000_000,
        "tokens_per_minute": 2_000_000_000,
        "concurrent_calls": 100_000,
    }


def _policy(name: str, effect: str, detectors: list[str], stage: str, models: list[str]) -> dict[str, Any]:
    uses = [{"id": d, **({"words": ["blue heron", "night owl"]} if d == "words" else {})} for d in detectors]
    when = CONDITIONS.get(name) or ("true" if effect == "redact" else "size(data.classes) > 0")
    return {
        "kind": "Policy", "metadata": {"name": name}, "effect": effect, "detectors": uses, "stages": [stage],
        "scope": {"models": models}, "when": when,
    }  # fmt: skip


def body(size: int, model: str = "plain", *, stream: bool = False) -> bytes:
    """Return a chat request of about ``size`` bytes."""
    request: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": ""}], "max_tokens": 64, "user": "u1", "stream": stream
    }  # fmt: skip
    missing = size - len(json.dumps(request))
    request["messages"][0]["content"] = (PROSE * (missing // len(PROSE) + 1))[: max(missing, 1)]
    return json.dumps(request).encode()


@dataclass
class Process:
    """A child of ours, pinned to a core."""

    popen: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        times = psutil.Process(self.popen.pid).cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def child(*arguments: str, core: int) -> Iterator[Process]:
    """Run ``python ARGUMENTS`` pinned to ``core`` until the block ends."""
    read, write = os.pipe()
    popen = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, pass_fds=(write,),
        env={**os.environ, "PYTHONPATH": str(ROOT), "AIRI_READY_FD": str(write)},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509  # no thread runs here
    )  # fmt: skip
    os.close(write)
    try:
        _wait_ready(popen, read)
        yield Process(popen)
    finally:
        os.close(read)
        popen.terminate()
        popen.wait(10)


def _wait_ready(popen: subprocess.Popen[bytes], pipe: int) -> None:
    import select

    assert popen.stdout is not None
    ready, _, _ = select.select([popen.stdout, pipe], [], [], 15)
    assert ready, f"{popen.args} did not become ready"


def load(
    mode: str,
    port: int,
    path: Path,
    key: str,
    seconds: float,
    headers: Sequence[str] = (),
    cores: frozenset[int] = frozenset({OTHER_CORE}),
    **options: float,
) -> dict[str, Any]:
    """Run the load generator on ``cores`` and return its line."""
    extra = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    extra += [part for header in headers for part in ("--header", header)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", mode, str(port), "--seconds", str(seconds), "--body", str(path), "--key", key, *extra],
        cwd=ROOT, capture_output=True, check=True, timeout=seconds + 90,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),  # no thread runs here
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    if result["errors"]:
        raise AssertionError(f"{result['errors']} errors, the first: {result['first_error']}")
    return result


def pin(live: Live) -> list[psutil.Process]:
    """Pin the gateway's processes to one core, all others to the other; return the gateway's.

    What a call does not wait for (writer, ledger) yields to Redis, the mock and the load generator on its core, so that
    the gateway is what saturates; it has its turn between rounds, and all of it is checked at the end.
    """
    gateways = []
    for process in _tree(live):
        mine = _is_gateway(process)
        _place(process, {GATEWAY_CORE if mine else OTHER_CORE})
        if mine:
            gateways.append(process)
        elif "redis" not in process.name():
            process.nice(10)
    return gateways


@contextlib.contextmanager
def unpinned(live: Live, *others: int) -> Iterator[None]:
    """Let every process of the tree, and ``others``, run where the scheduler puts it, as it does for people."""
    processes = [*_tree(live), *map(psutil.Process, others)]
    before = {process: process.cpu_affinity() for process in processes}
    for process in processes:
        _place(process, {GATEWAY_CORE, OTHER_CORE})
    try:
        yield
    finally:
        for process, cores in before.items():
            _place(process, set(cores or ()))


def _tree(live: Live) -> list[psutil.Process]:
    assert live.process is not None
    return psutil.Process(live.process.pid).children(recursive=True)


def _is_gateway(process: psutil.Process) -> bool:
    return "gateway.process" in " ".join(process.cmdline())


def _place(process: psutil.Process, cores: set[int]) -> None:
    for thread in process.threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, cores)


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return user and system time of the processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


@dataclass
class Figures:
    """Samples by name; the report takes medians."""

    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(values), 2) for name, values in self.samples.items()}


@dataclass
class Bench:
    """A live tree before a mock upstream, a bare forwarder beside it, and what was measured."""

    live: Live
    upstream: int
    upstream_process: Process
    bare: int
    bare_process: Process
    key: str
    gateways: list[psutil.Process]
    folder: Path
    figures: Figures = field(default_factory=Figures)
    counted: int = 0

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def unary(self, name: str, size: int, seconds: float) -> None:
        """CPU per whole call at saturation, AIRI and the bare forwarder in the same round."""
        path = self.file(name, body(size))
        before = self.bare_process.cpu_s()
        bare = load("closed", self.bare, path, "none", seconds, connections=CONNECTIONS)
        bare_us = (self.bare_process.cpu_s() - before) / bare["calls"] * 1e6
        before = cpu_s(self.gateways)
        result = load("closed", self.live.port, path, self.key, seconds, connections=CONNECTIONS)
        airi_us = (cpu_s(self.gateways) - before) / result["calls"] * 1e6
        self.counted += result["calls"]
        self.figures.add(f"cpu_us_{name}", airi_us)
        self.figures.add(f"cpu_us_{name}_bare", bare_us)
        self.figures.add(f"ratio_{name}", airi_us / bare_us)
        self.figures.add(f"rps_{name}", result["rps"])

    def stream(self, name: str, model: str, seconds: float) -> None:
        """CPU per stream chunk."""
        path = self.file(name, body(228, model, stream=True))
        before = self.bare_process.cpu_s()
        bare = load("closed", self.bare, path, "none", seconds, connections=CONNECTIONS)
        self.figures.add(
            f"cpu_us_chunk_{name}_bare", (self.bare_process.cpu_s() - before) / bare["events"] * 1e6
        )
        before = cpu_s(self.gateways)
        result = load("closed", self.live.port, path, self.key, seconds, connections=CONNECTIONS)
        self.counted += result["calls"]
        self.figures.add(f"cpu_us_chunk_{name}", (cpu_s(self.gateways) - before) / result["events"] * 1e6)

    def rate(self, seconds: float) -> None:
        """Added latency at 1,000 calls a second, against the mock asked directly; nothing is pinned here."""
        path = self.file("rate", body(228))
        everywhere = frozenset({GATEWAY_CORE, OTHER_CORE})
        with unpinned(self.live, self.upstream_process.popen.pid):
            direct, result = (
                load("open", port, path, key, seconds, cores=everywhere, rate=1_000, connections=CONNECTIONS)
                for port, key in ((self.upstream, "none"), (self.live.port, self.key))
            )
        self.counted += result["calls"]
        for share in ("p50", "p99"):
            self.figures.add(f"added_{share}_us", result[f"{share}_us"] - direct[f"{share}_us"])

    def verify(self) -> dict[str, int]:
        """Return calls, ledger entries, records and records with a price decision: they must be the same number."""
        found: dict[str, int] = {}

        def same() -> bool:
            found.update(calls=self.counted, settlements=self._ledger(), **self._records())
            return len(set(found.values())) == 1

        with contextlib.suppress(AssertionError):
            wait_until(same, 60, 0.5)
        if len(set(found.values())) != 1:
            raise AssertionError(f"not one settlement, one decision and one record for each call: {found}")
        return found

    def _ledger(self) -> int:
        with contextlib.closing(sqlite3.connect(self.live.home / "airi.db")) as connection:
            return int(connection.execute("SELECT count(*) FROM ledger WHERE tenant = 'bench'").fetchone()[0])

    def _records(self) -> dict[str, int]:
        """Count records, and records that hold exactly one decision on the route and one on the price."""
        records = decisions = 0
        for path in (self.live.home / "records").glob("*.db"):
            with contextlib.closing(sqlite3.connect(path)) as connection:
                query = "SELECT body FROM calls JOIN bodies USING (id) WHERE tenant = 'bench'"
                for (raw,) in connection.execute(query):
                    stages = [decision.stage for decision in _record.decode(raw).decisions]
                    records += 1
                    decisions += stages.count("route") == stages.count("price") == stages.count("policy") == 1
        return {"records": records, "decisions": decisions}


@contextlib.contextmanager
def bench(folder: Path, *, workers: int = 1, interval_ms: float = 5) -> Iterator[Bench]:
    """Start everything; yield it; stop everything."""
    upstream, bare = free_port(), free_port()
    with (
        child(
            "-m",
            "bench.upstream",
            str(upstream),
            "--chunks",
            str(STREAM_CHUNKS),
            "--interval-ms",
            str(interval_ms),
            core=OTHER_CORE,
        ) as upstream_process,
        child("bench/bare_forwarder.py", str(bare), str(upstream), core=GATEWAY_CORE) as bare_process,
        Live(folder / "home", config(upstream), AIRI_WORKERS=str(workers)) as live,
    ):
        with live.admin() as admin:
            made = admin.post(
                "/admin/v1/keys", json={"tenant": "bench", "team": "bench", "limits": _limits()}
            )
            made.raise_for_status()
        time.sleep(1)
        yield Bench(
            live, upstream, upstream_process, bare, bare_process, made.json()["key"], pin(live), folder
        )
