"""In which order steps can run, by what they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agents.definition import Step


def circle(start: str, needs: Mapping[str, set[str]]) -> list[str]:
    """A path from ``start`` along ``needs`` back to itself."""
    stack = [[start]]
    while stack:
        path = stack.pop()
        for need in sorted(needs[path[-1]]):
            if need == start:
                return [*path, start]
            if need not in path:
                stack.append([*path, need])
    return [start]


def in_order(steps: Sequence[Step]) -> tuple[str, ...]:
    """A topological order that keeps the document's order where it can."""
    done: list[str] = []
    waiting = list(steps)
    while waiting:
        ready = next((step for step in waiting if all(need in done for need in step.needs)), None)
        if ready is None:  # a circle or an unknown step, reported elsewhere
            break
        done.append(ready.id)
        waiting.remove(ready)
    return tuple(done)
