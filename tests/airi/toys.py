"""Toy processes for the supervisor's tests, and a tiny supervisor program that can be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from airi.up.specs import ProcessSpec
from airi.up.supervisor import Supervisor

STEADY = """
import os, signal, sys, time
name, journal = sys.argv[1:3]
def note(text):
    with open(journal, "a") as file:
        file.write(f"{name} {text} {os.getpid()}\\n")
def end(*_):
    note("ends")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, lambda *_: note("interrupted"))
note("starts")
os.write(int(os.environ["AIRI_READY_FD"]), b"READY\\n")
while True:
    time.sleep(60)
"""
STUBBORN = STEADY.replace(
    "signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
)
PARENT = STEADY.replace(
    'note("starts")',
    """
import subprocess
same = subprocess.Popen(["sleep", "1000"])
apart = subprocess.Popen(["sleep", "1000"], start_new_session=True)
with open(journal, "a") as file:
    file.write(f"{name} child {same.pid}\\n{name} child {apart.pid}\\n")
note("starts")
""",
)
BROKEN = "import sys; print('cannot open the flux', file=sys.stderr); sys.exit(3)"


def toy(name: str, role: str, journal: Path, code: str = STEADY, **options: object) -> ProcessSpec:
    """Return a spec of a process that writes its doings to ``journal``."""
    return ProcessSpec(name, role, [sys.executable, "-S", "-c", code, name, str(journal)], **options)  # type: ignore[arg-type]


def supervisor(
    specs: list[ProcessSpec],
    say: Callable[[str], None],
    logs: Path | None = None,
    order: tuple[str, ...] = (),
) -> Supervisor:
    """Return a supervisor of toys."""
    roles = order or tuple(dict.fromkeys(spec.role for spec in specs))
    return Supervisor(specs, environment=dict(os.environ), say=say, drain_order=roles, logs=logs)


async def _main(journal: Path) -> None:
    tree = supervisor([toy("a", "a", journal), toy("b", "b", journal, PARENT)], say=print)
    await tree.start()
    print("UP", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
