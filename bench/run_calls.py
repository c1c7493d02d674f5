"""The section ``calls`` of ``make bench``: see docs/performance.md.

python -m bench.run_calls [--rounds 3] [--seconds 4] [--workers 1]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil

from bench.calls import Bench, bench

REACH = {
    "cpu_us_unary_228": "110 (door: 70)",
    "cpu_us_unary_10k": "160 (door: 100)",
    "cpu_us_chunk_observed": "25 (door: 22)",
    "cpu_us_chunk_redacted": "45 (door: 40)",
    "added_p50_us": "350 (door: 250)",
    "added_p99_us": "– (door: 1,500)",
    "memory_idle_mb": "80",
    "memory_loaded_mb": "140",
}


def _note_memory(subject: Bench, when: str) -> None:
    """Resident memory, and what of it a gateway process has to itself: the rest are file pages that all processes share."""
    memory = [process.memory_full_info() for process in subject.gateways]
    subject.figures.add(f"memory_{when}_mb", max(one.rss for one in memory) / 1e6)
    subject.figures.add(f"memory_{when}_own_mb", max(one.uss for one in memory) / 1e6)


def _one_round(subject: Bench, seconds: float) -> None:
    subject.unary("unary_228", 228, seconds)
    subject.unary("unary_10k", 10_000, seconds)
    subject.stream("observed", "plain", seconds)
    subject.stream("redacted", "guarded", seconds)
    subject.rate(seconds)


def run(rounds: int, seconds: float, workers: int) -> dict[str, object]:
    """Measure and return all figures."""
    with (
        tempfile.TemporaryDirectory(prefix="airi-bench-") as folder,
        bench(Path(folder), workers=workers) as subject,
    ):
        _note_memory(subject, "idle")
        for _ in range(rounds):
            _one_round(subject, seconds)
        _note_memory(subject, "loaded")
        checked = subject.verify()
    return {
        "figures": subject.figures.medians(),
        "checked": checked,
        "rounds": rounds,
        "seconds": seconds,
        "workers": workers,
    }


def table(result: dict[str, object]) -> str:
    """Return the figures as Markdown."""
    figures = result["figures"]
    assert isinstance(figures, dict)
    lines = ["| figure (medians) | measured | reach ≤ |", "|---|---:|---:|"]
    lines += [f"| `{name}` | {value:,g} | {REACH.get(name, '')} |" for name, value in figures.items()]
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    result = run(arguments.rounds, arguments.seconds, arguments.workers)
    result["cores"] = psutil.cpu_count()
    result["took_s"] = round(time.monotonic() - began)
    print(table(result))
    print("checked: " + ", ".join(f"{name} {value:,}" for name, value in result["checked"].items()))  # type: ignore[attr-defined]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
