"""Starts, watches and ends the tree of processes.

- Children start as soon as what they need is ready, side by side otherwise.
- A child that dies is started again with exponential back-off, and the supervisor says so.
- The end comes role by role (:data:`airi.up.specs.DRAIN_ORDER`): the next role is asked to end when the last one has.
- When the supervisor itself is killed, the kernel (Linux) and ``guard.py`` (everywhere) kill the rest.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from airi.up.child import Child, Surroundings
from airi.up.errors import StartError
from airi.up.guard import TREE_VARIABLE
from airi.up.specs import ProcessSpec

START_TIMEOUT_S = 120.0
DEATHS_AT_START = 3
"""A process that dies this often before the tree was ready stops the start."""
LOG_LIMIT_BYTES = 32 << 20
_LOG_CHECK_S = 30.0
_SLOW_START_S = 5.0
_TAIL_LINES = 15
_GUARD = str(Path(__file__).with_name("guard.py"))


class Supervisor:
    """The tree of one AIRI_HOME."""

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        environment: dict[str, str],
        say: Callable[[str], None],
        drain_order: Sequence[str],
        logs: Path | None = None,
        keep_open: tuple[int, ...] = (),
    ) -> None:
        self._say = say
        self._drain_order = drain_order
        self._mark = secrets.token_hex(16)
        self._guard = _start_guard(self._mark)
        around = Surroundings(
            environment={**environment, TREE_VARIABLE: self._mark},
            say=say,
            group_started=lambda group: self._tell_guard(f"+{group}"),
            group_ended=lambda group: self._tell_guard(f"-{group}"),
            logs=logs,
            keep_open=keep_open,
        )
        self.children = {spec.name: Child(spec, around) for spec in specs}
        self._groups: set[int] = set()
        self._late: list[asyncio.Task[None]] = []
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start all; return when all that are awaited are ready. Raises :class:`StartError` when one of them cannot."""
        began = time.monotonic()
        self._keeper = asyncio.create_task(self._keep_house())
        tasks: list[asyncio.Task[None]] = []
        for child in self.children.values():
            starting = asyncio.create_task(self._start_one(child, began))
            (tasks if child.spec.awaited else self._late).append(starting)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.gather(*tasks)
        except TimeoutError as error:
            missing = [
                name
                for name, child in self.children.items()
                if child.spec.awaited and not child.ready.is_set()
            ]
            raise StartError(f"not ready within {START_TIMEOUT_S:.0f} s: {', '.join(missing)}") from error
        finally:
            for task in tasks:
                task.cancel()

    async def drain(self) -> None:
        """End the tree in order; running calls and steps are given their time."""
        self._stop_starting()
        for role in self._drain_order:
            children = [child for child in self.children.values() if child.spec.role == role]
            if children:
                self._say(f"stopping {role}")
                await asyncio.gather(*(child.stop() for child in children))
        await self._close()

    async def kill(self) -> None:
        """End the tree at once."""
        self._stop_starting()
        for child in self.children.values():
            child.kill()
        await asyncio.gather(*(child.stop() for child in self.children.values()))
        await self._close()

    def _stop_starting(self) -> None:
        for task in self._late:
            task.cancel()

    async def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        _close_pipe(self._guard)
        await asyncio.to_thread(self._guard.wait, 10)

    async def _start_one(self, child: Child, began: float) -> None:
        for name in child.spec.after:
            await self.children[name].ready.wait()
        child.start()
        slow = began + _SLOW_START_S
        while True:
            try:
                await asyncio.wait_for(child.ready.wait(), 0.1)
            except TimeoutError:
                if child.spec.awaited and child.deaths >= DEATHS_AT_START:
                    raise StartError(self._why_not(child)) from None
                if time.monotonic() > slow:
                    slow = time.monotonic() + _SLOW_START_S
                    self._say(f"{child.spec.name} is still starting ({time.monotonic() - began:.0f} s)")
            else:
                self._say(f"{child.spec.name:<10} ready after {time.monotonic() - began:.1f} s")
                return

    def _why_not(self, child: Child) -> str:
        message = f"{child.spec.name} does not start"
        path = child.log
        if path is None:
            return f"{message}; its own words are above"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join([f"{message}; the end of {path}:", *lines[-_TAIL_LINES:]])

    def _tell_guard(self, line: str) -> None:
        group = int(line[1:])
        if line[0] == "+":
            self._groups.add(group)
        else:
            self._groups.discard(group)
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(f"{line}\n".encode())
            self._guard.stdin.flush()
        except OSError:
            return  # it has died; _keep_house starts another and tells it everything

    async def _keep_house(self) -> None:
        """Restart a guard that died; keep log files within bounds."""
        next_check = 0.0
        while True:
            if self._guard.poll() is not None:
                self._say("the guard has died; starting it again")
                _close_pipe(self._guard)
                self._guard = _start_guard(self._mark)
                for group in list(self._groups):
                    self._tell_guard(f"+{group}")
            if time.monotonic() > next_check:
                next_check = time.monotonic() + _LOG_CHECK_S
                await asyncio.to_thread(_bound_logs, {child.log for child in self.children.values()})
            await asyncio.sleep(0.5)


def _start_guard(mark: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _GUARD, mark],
        stdin=subprocess.PIPE,
        env={},
        start_new_session=True,
    )


def _close_pipe(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    try:
        guard.stdin.close()
    except OSError:
        return  # something unsent, to a guard that is dead


def _bound_logs(logs: Collection[Path | None]) -> None:
    """Keep one older half of a log that has grown too long; its process goes on appending to the same file."""
    for path in logs:
        if path is not None and path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
            path.with_suffix(".log.1").write_bytes(path.read_bytes())
            with path.open("r+b") as file:
                file.truncate(0)
