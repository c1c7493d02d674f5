"""The section ``load`` of ``make bench``: many callers at once, for long, and more than there is room for.

python -m bench.run_load [--calls 200000] [--streams 20000] [--only crowd|overload|workers|soak …]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import FOLDER, calls
from bench.calls import OTHER_CORE, body, child, cpu_s
from tests.support.live import ROOT, Live, free_port

CALLERS = 1_000
UPSTREAM_MS = 60
BOUND = 200
"""Calls that the gateway takes at once in the part ``overload``, and callers that hold them."""
OVERLOAD_MS = 500
FLOOD = 100
"""Further callers, who come again a quarter of a second after each refusal."""
REACH = {
    "calls_errors": "0", "calls_p99_ratio": "3", "burst_errors": "0", "burst_p99_ratio": "3",
    "streams_errors": "0", "streams_stalled": "0", "overload_errors": "0", "refused_p50_ms": "10", "refused_p99_ms": "10",
    "memory_end_mb": "140", "soak_errors": "0", "soak_stalled": "0",
}  # fmt: skip
Figures = dict[str, float]


@dataclass
class World:
    """A live tree before a mock upstream."""

    live: Live
    upstream: int
    key: str
    folder: Path
    gateways: list[psutil.Process]

    def crowd(self, mode: str, data: bytes, *, direct: bool = False, **options: float) -> dict[str, Any]:
        """Let a crowd call AIRI, or the mock itself; return what it saw."""
        with self.crowding(mode, data, direct=direct, **options) as process:
            said, _ = process.communicate(timeout=600)
        result: dict[str, Any] = json.loads(said)
        return result

    @contextlib.contextmanager
    def crowding(
        self, mode: str, data: bytes, *, direct: bool = False, **options: float
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A crowd that calls while the block lasts."""
        path = self.folder / f"{time.monotonic_ns()}.json"
        path.write_bytes(data)
        port, key = (self.upstream, "none") if direct else (self.live.port, self.key)
        words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.crowd", mode, str(port), "--body", str(path), "--key", key, *words],
            cwd=ROOT, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def world(*upstream: str, **environment: str) -> Iterator[World]:
    """Start a mock upstream with these options and a tree before it; nothing is pinned but the mock."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="airi-load-", dir=FOLDER) as name,
        child("-m", "bench.upstream", str(port), *upstream, core=OTHER_CORE),
        Live(Path(name) / "home", calls.config(port), AIRI_SIM_REPLICAS="1", **environment) as live,
    ):
        with live.admin() as admin:
            made = admin.post("/admin/v1/keys", json={"tenant": "bench", "team": "bench"})
            made.raise_for_status()
        assert live.process is not None
        tree = psutil.Process(live.process.pid).children(recursive=True)
        gateways = [process for process in tree if "gateway.process" in " ".join(process.cmdline())]
        yield World(live, port, made.json()["key"], Path(name), gateways)


def crowd_part() -> Figures:
    """1,000 callers at once: again and again, in one burst, and as streams."""
    figures: Figures = {}
    with world("--delay-ms", str(UPSTREAM_MS), "--chunks", "40", "--interval-ms", "250") as made:
        plain = body(228)
        for name, mode, count in (("calls", "loop", 20_000), ("burst", "burst", CALLERS)):
            made.crowd(mode, plain, callers=CALLERS, calls=CALLERS)  # connections of the pool are opened once
            direct = made.crowd(mode, plain, direct=True, callers=CALLERS, calls=count)
            seen = made.crowd(mode, plain, callers=CALLERS, calls=count)
            figures |= {
                f"{name}_errors": seen["errors"] + seen["stalled"], f"{name}_p50_ms": seen["p50_us"] / 1e3,
                f"{name}_p99_ms": seen["p99_us"] / 1e3, f"{name}_direct_p99_ms": direct["p99_us"] / 1e3,
                f"{name}_p99_ratio": seen["p99_us"] / direct["p99_us"], f"{name}_per_s": seen["rps"],
            }  # fmt: skip
        streams = made.crowd("burst", body(228, stream=True), callers=CALLERS)
        figures |= {
            "streams_errors": streams["errors"], "streams_stalled": streams["stalled"], "streams_whole": streams["calls"],
            "streams_first_chunk_p99_ms": streams["ttft_p99_us"] / 1e3, "streams_longest_pause_ms": streams["longest_gap_ms"],
        }  # fmt: skip
    return figures


def overload_part() -> Figures:
    """The gateway has all the calls it takes, and more come: how quickly are they told, and what do the others feel?"""
    with world("--delay-ms", str(OVERLOAD_MS), AIRI_MAX_CALLS=str(BOUND)) as made:
        plain = body(228)
        made.crowd("burst", plain, callers=BOUND)
        alone = made.crowd("loop", plain, callers=BOUND, calls=BOUND * 10)
        with made.crowding("loop", plain, callers=BOUND, calls=BOUND * 24, pause=0.001) as holding:
            time.sleep(1)  # the bound is reached
            flood = made.crowd("loop", plain, callers=FLOOD, calls=FLOOD * 30, pause=0.25)
            said, _ = holding.communicate(timeout=120)
        admitted = json.loads(said)
    return {
        "overload_errors": flood["errors"] + admitted["errors"], "refused": flood["refused"],
        "refused_p50_ms": flood["refused_p50_us"] / 1e3, "refused_p99_ms": flood["refused_p99_us"] / 1e3,
        "admitted_alone_p99_ms": alone["p99_us"] / 1e3, "admitted_p99_ms": admitted["p99_us"] / 1e3,
    }  # fmt: skip


def workers_part() -> Figures:
    """One and two gateway processes on one port: calls a second, CPU a call, and how the connections fell."""
    figures: Figures = {}
    for workers in (1, 2):
        with world(AIRI_WORKERS=str(workers)) as made:
            made.crowd("loop", body(228), callers=64, calls=2_000)
            before = [cpu_s([gateway]) for gateway in made.gateways]
            seen = made.crowd("loop", body(228), callers=64, calls=12_000)
            spent = [cpu_s([gateway]) - start for gateway, start in zip(made.gateways, before, strict=True)]
        figures |= {
            f"workers_{workers}_per_s": seen["rps"], f"workers_{workers}_cpu_us": sum(spent) / seen["calls"] * 1e6,
            f"workers_{workers}_errors": seen["errors"],
        }  # fmt: skip
        if workers == 2:
            figures["workers_2_least_share"] = min(spent) / sum(spent)
    figures["workers_2_gain"] = figures["workers_2_per_s"] / figures["workers_1_per_s"]
    return figures


def soak_part(count: int, streams: int) -> Figures:
    """Calls and streams by turns, for long; the memory of the gateway at the start, at the end, and its slope between."""
    rounds = 10
    errors = stalled = done = streamed = 0
    with world("--chunks", "20", "--interval-ms", "5") as made, _memory(made.gateways[0]) as samples:
        idle = samples[0][1]
        for _ in range(rounds):
            whole = made.crowd("loop", body(228), callers=64, calls=count // rounds)
            streaming = made.crowd("loop", body(228, stream=True), callers=128, calls=streams // rounds)
            done, streamed = done + whole["calls"], streamed + streaming["calls"]
            errors += whole["errors"] + streaming["errors"]
            stalled += whole["stalled"] + streaming["stalled"]
        time.sleep(2)
    settled = samples[len(samples) // 5 :]  # caches fill in the first round
    slope = statistics.linear_regression([at for at, _ in settled], [size for _, size in settled]).slope
    return {
        "soak_calls": done, "soak_streams": streamed, "soak_errors": errors, "soak_stalled": stalled,
        "memory_start_mb": idle, "memory_after_warmup_mb": settled[0][1], "memory_end_mb": samples[-1][1],
        "memory_slope_mb_per_minute": slope * 60, "soak_minutes": (samples[-1][0] - samples[0][0]) / 60,
    }  # fmt: skip


@contextlib.contextmanager
def _memory(gateway: psutil.Process) -> Iterator[list[tuple[float, float]]]:
    """Samples of (seconds, megabytes), one a second."""
    samples = [(time.monotonic(), gateway.memory_info().rss / 1e6)]
    over = threading.Event()

    def look() -> None:
        while not over.wait(1):
            samples.append((time.monotonic(), gateway.memory_info().rss / 1e6))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def table(figures: Figures) -> str:
    """Return the figures as Markdown."""
    lines = ["| figure | measured | reach ≤ |", "|---|---:|---:|"]
    lines += [f"| `{name}` | {value:,g} | {REACH.get(name, '')} |" for name, value in figures.items()]
    return "\n".join(lines)


def main() -> int:
    """Run from the command line; the exit status is 1 when a call failed or a stream stalled."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--streams", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", default=["crowd", "overload", "workers", "soak"])
    given = parser.parse_args()
    began = time.monotonic()
    figures: Figures = {}
    if "crowd" in given.only:
        figures |= crowd_part()
    if "overload" in given.only:
        figures |= overload_part()
    if "workers" in given.only:
        figures |= workers_part()
    if "soak" in given.only:
        figures |= soak_part(given.calls, given.streams)
    figures = {name: round(value, 2) for name, value in figures.items()}
    print(table(figures))
    print(f"checked: every call had its answer or its refusal, in {time.monotonic() - began:.0f} s")
    print(json.dumps({"figures": figures, "cores": psutil.cpu_count()}))
    return int(any(figures.get(name, 0) for name in figures if name.endswith(("_errors", "_stalled"))))


if __name__ == "__main__":
    sys.exit(main())
