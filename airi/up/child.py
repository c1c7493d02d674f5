"""One supervised process: started, watched, restarted with back-off, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from airi.up.ready import READY_FD
from airi.up.specs import ProcessSpec

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0
STEADY_S = 30.0
"""A process that lived this long is started anew without a grown delay."""
_PROBE_EVERY_S = 0.01
_SHIM = str(Path(__file__).with_name("shim.py"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all children share."""

    environment: dict[str, str]
    say: Callable[[str], None]
    group_started: Callable[[int], None]
    group_ended: Callable[[int], None]
    logs: Path | None
    """Folder of one log file a process; ``None``: standard error."""
    keep_open: tuple[int, ...] = ()
    """Descriptors that every child holds (the lock on AIRI_HOME)."""


class Child:
    """Keeps one process of the tree alive until :meth:`stop`."""

    def __init__(self, spec: ProcessSpec, around: Surroundings) -> None:
        self.spec = spec
        self.ready = asyncio.Event()
        self.deaths = 0
        self.pid: int | None = None
        self.log = spec.log or (around.logs and around.logs / f"{spec.name}.log")
        """The file with its words; ``None``: they are on standard error."""
        self._around = around
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep the process alive."""
        self._keeper = asyncio.create_task(self._keep(), name=self.spec.name)

    async def stop(self) -> bool:
        """Ask the process to end, kill it after ``drain_s``; return whether it ended by itself."""
        self._stopping.set()
        process = self._process
        ended = True
        if process is not None and process.returncode is None:
            _signal(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), self.spec.drain_s)
            except TimeoutError:
                ended = False
                self._around.say(f"{self.spec.name} did not end within {self.spec.drain_s:.0f} s: killed")
        self.kill()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        return ended

    def kill(self) -> None:
        """Kill the process and whatever it started in its group, at once."""
        self._stopping.set()
        if self._process is not None:
            _kill_group(self._process.pid)

    async def _keep(self) -> None:
        delay = FIRST_DELAY_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                ending = _describe(await self._run_once())
            except OSError as error:  # the binary has gone, or the machine lacks processes or descriptors
                ending = f"cannot start: {error}"
            if self._stopping.is_set():
                return
            self.deaths += 1
            if time.monotonic() - began > STEADY_S:
                delay = FIRST_DELAY_S
            self._around.say(f"{self.spec.name} {ending}; starting it again in {delay:.1f} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_S)

    async def _run_once(self) -> int:
        """Run the process to its end and return its exit status (negative: the signal)."""
        if self.spec.prepare is not None:
            self.spec.prepare()
        reading, writing = os.pipe()
        try:
            with _output(self.log) as output:
                self._process = process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", _SHIM, str(os.getpid()), *self.spec.command),
                    env={**self._around.environment, **self.spec.environment, READY_FD: str(writing)},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing, *self._around.keep_open),
                    process_group=0,
                )
        except BaseException:  # no descriptor is left behind, whatever stopped the start
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.pid = process.pid
        self._around.group_started(process.pid)
        watcher = asyncio.create_task(self._watch_ready(reading))
        try:
            return await process.wait()
        finally:
            self.ready.clear()
            watcher.cancel()
            await asyncio.wait([watcher])
            _kill_group(process.pid)  # what it had started and left behind
            self._around.group_ended(process.pid)
            self.pid = None

    async def _watch_ready(self, reading: int) -> None:
        try:
            if self.spec.probe is not None:
                while not await asyncio.to_thread(self.spec.probe):  # noqa: ASYNC110  # another process's state
                    await asyncio.sleep(_PROBE_EVERY_S)
                self.ready.set()
            elif b"READY" in await _read_once(reading):
                self.ready.set()
        finally:
            os.close(reading)


async def _read_once(descriptor: int) -> bytes:
    """Wait until the pipe has something, or ends."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 64)


def _output(log: Path | None) -> IO[bytes]:
    return os.fdopen(os.dup(sys.stderr.fileno()), "wb") if log is None else log.open("ab")


def _signal(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        return


def _describe(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name}"
