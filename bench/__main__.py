"""``make bench``: every figure of docs/performance.md, printed as tables and JSON.

    python -m bench [SECTION …] [--rounds N] [--seconds S] [--write]

Sections: calls, stages, budget, interleavings, redaction, fairness, replica, steps, scale, load. Without a name: all of them.
The section peers is measured when it is named; ``make bench-peers`` installs what it needs.
``--write`` writes docs/performance.md and docs/figures/*.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.report import ROOT, SECTIONS, write_page


def run(name: str, command: list[str]) -> dict[str, object]:
    """Run one section in a process of its own; return what it printed and how it ended."""
    print(f"== {name}: python {' '.join(command)}", flush=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        print(done.stderr[-4_000:], file=sys.stderr, flush=True)
    return {
        "command": "python " + " ".join(command), "ok": done.returncode == 0, "took_s": round(time.monotonic() - began),
        "output": done.stdout.strip(),
    }  # fmt: skip


def main() -> int:
    """Run from the command line; the exit status is 1 when a section failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", choices=[*SECTIONS, []], help="what to measure (default: everything)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and docs/figures/")
    arguments = parser.parse_args()
    results = {}
    named = arguments.sections or [name for name, section in SECTIONS.items() if section.by_default]
    for name in named:
        command = list(SECTIONS[name].command)
        if name in ("calls", "peers"):
            command += ["--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds)]
        results[name] = run(name, command)
    machine = f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total // 2**30} GiB, Python {sys.version.split()[0]}"
    if arguments.write:
        folder = ROOT / "docs" / "figures"
        folder.mkdir(exist_ok=True)
        for name, result in results.items():
            Path(folder / f"{name}.json").write_text(
                json.dumps({"machine": machine, **result}, indent=2) + "\n"
            )
        write_page()
    return 0 if all(result["ok"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
