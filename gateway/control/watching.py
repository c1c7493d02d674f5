"""Noticing that runs move: one query for all watched runs ten times a second, however many callers follow them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from agents.service import RunService
from agents.states import RUN_ENDED

_EVERY_S = 0.1
_AT_ONCE = 500


class Changes:
    """What one caller knows of one run."""

    def __init__(self, watch: RunWatch, run_id: str) -> None:
        self._watch = watch
        self._run_id = run_id

    async def beyond(self, seq: int, patience_s: float) -> tuple[int, str]:
        """Wait until the run has events after ``seq`` or has ended, at most ``patience_s``; return (seq, state)."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while True:
                    known = self._watch.known.get(self._run_id)
                    if known is not None and (known[0] > seq or known[1] in RUN_ENDED):
                        return known
                    await self._watch.turn()
        return self._watch.known.get(self._run_id, (seq, ""))


class RunWatch:
    """Looks after the runs that somebody follows, on the loop of the control plane."""

    def __init__(self, service: RunService) -> None:
        self._service = service
        self._watched: dict[str, int] = {}
        self._turn = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.known: dict[str, tuple[int, str]] = {}

    @property
    def streams(self) -> int:
        """How many callers follow runs."""
        return sum(self._watched.values())

    @contextlib.contextmanager
    def watching(self, run_id: str) -> Iterator[Changes]:
        """Follow a run as long as the context lasts."""
        self._watched[run_id] = self._watched.get(run_id, 0) + 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look(), name="run watch")
        try:
            yield Changes(self, run_id)
        finally:
            self._watched[run_id] -= 1
            if not self._watched[run_id]:
                del self._watched[run_id]
                self.known.pop(run_id, None)

    async def turn(self) -> None:
        """Wait until the runs were looked at again."""
        await self._turn.wait()

    async def _look(self) -> None:
        while self._watched:
            wanted = list(self._watched)
            for start in range(0, len(wanted), _AT_ONCE):
                with contextlib.suppress(Exception):  # the database is away: look again at the next turn
                    found = await asyncio.to_thread(self._service.progress, wanted[start : start + _AT_ONCE])
                    self.known.update((run, what) for run, what in found.items() if run in self._watched)
            self._turn.set()
            self._turn = asyncio.Event()
            await asyncio.sleep(_EVERY_S)
