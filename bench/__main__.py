"""``make bench``: the figures of docs/performance.md, printed as a table and as JSON.

    python -m bench [--rounds 3] [--seconds 4] [--write]

CPU is user and system time of the gateway's processes, pinned to one core, at saturation with 64 connections; Redis,
writer, control plane, mock upstream and load generator share the other core. ``ratio`` is to a bare forwarder on the
same HTTP server and client in the same round. Absolute times are this machine's; ratios travel.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil

from bench.calls import Bench, bench

TARGETS = {
    "cpu_us_unary_228": 70,
    "cpu_us_unary_10k": 100,
    "cpu_us_chunk_observed": 22,
    "cpu_us_chunk_redacted": 40,
    "added_p50_us": 250,
    "added_p99_us": 1_500,
    "memory_idle_mb": 80,
    "memory_loaded_mb": 140,
}


def _megabytes(bench_: Bench) -> float:
    return max(process.memory_info().rss for process in bench_.gateways) / 1e6


def _one_round(subject: Bench, seconds: float) -> None:
    subject.unary("unary_228", 228, seconds)
    subject.unary("unary_10k", 10_000, seconds)
    subject.stream("observed", "plain", seconds)
    subject.stream("redacted", "guarded", seconds)
    subject.rate(seconds)


def run(rounds: int, seconds: float) -> dict[str, object]:
    """Measure and return all figures."""
    with tempfile.TemporaryDirectory(prefix="airi-bench-") as folder, bench(Path(folder)) as subject:
        subject.figures.add("memory_idle_mb", _megabytes(subject))
        for number in range(rounds):
            _one_round(subject, seconds)
            print(f"round {number + 1} of {rounds} done", flush=True)
        subject.figures.add("memory_loaded_mb", _megabytes(subject))
        checked = subject.verify()
    return {"figures": subject.figures.medians(), "checked": checked, "rounds": rounds, "seconds": seconds}


def table(result: dict[str, object]) -> str:
    """Return the figures as Markdown."""
    figures = result["figures"]
    assert isinstance(figures, dict)
    lines = ["| figure | measured | to reach |", "|---|---:|---:|"]
    lines += [f"| {name} | {value:g} | {'≤ ' + str(TARGETS[name]) if name in TARGETS else ''} |" for name, value in figures.items()]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--json", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    began = time.monotonic()
    result = run(arguments.rounds, arguments.seconds)
    result["machine"] = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total // 2**30} GiB"
    result["took_s"] = round(time.monotonic() - began)
    print(table(result))
    print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
