"""Outlives the supervisor by a moment and kills what it left: ``guard.py TREE``.

Standard input is a pipe whose other end only the supervisor holds. It writes ``+PGID`` when it starts a child (each
leads a process group of its own) and ``-PGID`` when one has ended and its group was cleared. The end of the pipe
means that the supervisor is gone, in whatever way: every group still listed is killed, and on Linux every process
that carries the tree's mark in its environment (a grandchild that made a group of its own). Imports next to
nothing; runs with ``python -I -S``.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

TREE_VARIABLE = "AIRI_TREE"
_PATIENCE_S = 4.0


def listed_groups(lines: Iterable[str]) -> set[int]:
    """Read the pipe to its end and return the groups that live."""
    groups: set[int] = set()
    for line in lines:
        if not line.endswith("\n"):  # cut off by the end
            break
        number = int(line[1:])
        if line[0] == "+":
            groups.add(number)
        else:
            groups.discard(number)
    return groups


def marked_processes(mark: str) -> list[int]:
    """Return the processes of this user whose environment holds the tree's mark (Linux; elsewhere none)."""
    wanted = f"{TREE_VARIABLE}={mark}".encode()
    found = []
    try:
        entries = os.listdir("/proc")  # noqa: PTH208  # pathlib would be one more import
    except OSError:
        return []
    for entry in entries:
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:  # noqa: PTH123
                if wanted in file.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:
            continue
    return found


def kill_all(groups: set[int], mark: str) -> None:
    """Kill the groups and the marked, again until none is left or patience ends."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        for group in list(groups):
            try:
                os.killpg(group, signal.SIGKILL)
            except OSError:
                groups.discard(group)
        marked = marked_processes(mark)
        for process in marked:
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                continue
        if not groups and not marked:
            return
        time.sleep(0.05)


if __name__ == "__main__":
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    kill_all(listed_groups(sys.stdin), sys.argv[1])
