"""The working part of a worker process: threads that compute, one event loop that waits, a keeper of leases.

A Celery thread claims a step and drives it. Function tools without outside effects run right there; everything
that waits (models, HTTP, effects) moves to the one persistent loop, so a thousand waiting steps cost a thousand
small tasks and no thread. Whoever records a step's result may take the run's next step in the same transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from agents import faults
from agents.errors import AmbiguousEffect, ErrorClass, Fenced, RunStopped, StepFailed, UnknownRunError
from agents.leases import Claim, Leases
from agents.steps import agent, llm, tool
from agents.steps.work import Work
from agents.tuning import Tuning
from airi.errors import AiriError

logger = logging.getLogger(__name__)
_RUNNERS: dict[str, Callable[[Work, Claim], Coroutine[Any, Any, tuple[Any, str]]]] = {
    "llm": llm.run,
    "agent": agent.run,
    "tool": tool.run,
}
_WORKFLOW_MODEL = "workflow/"
_PERSIST_TRIES = 6
_PERSIST_PAUSE_S = 0.1


@dataclass(slots=True, eq=False)
class _Held:
    """A step that this process works on. ``why`` says for what reason its work was interrupted."""

    claim: Claim
    in_slot: bool
    started_ns: int = field(default_factory=time.time_ns)
    clock_ns: int = field(default_factory=time.monotonic_ns)
    task: asyncio.Task[Any] | None = None
    why: str = ""

    @property
    def overdue(self) -> bool:
        return (time.monotonic_ns() - self.clock_ns) // 1_000_000 > self.claim.timeout_ms


class Runtime:
    """Executes steps. ``work`` is built by ``make_work`` once the loop runs."""

    def __init__(
        self, leases: Leases, make_work: Callable[[Callable[..., Any]], Work], tuning: Tuning
    ) -> None:
        self._leases = leases
        self._tuning = tuning
        self._held: dict[tuple[str, str], _Held] = {}
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(tuning.slots)
        self._threads = ThreadPoolExecutor(tuning.threads * 2, thread_name_prefix="step")
        self.loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._run_loop, name="waiting", daemon=True)
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="leases", daemon=True)
        self.work = make_work(self._in_thread)
        self.draining = False

    def start(self) -> None:
        """Start the loop and the keeper of leases."""
        self._loop_thread.start()
        self._keeper.start()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self.loop.run_in_executor(self._threads, function, *arguments)

    @property
    def busy(self) -> int:
        """Steps in the hands of this process."""
        return len(self._held)

    # -- from messages --------------------------------------------------------------------------------------------

    def execute(self, run_id: str, path: str, fence: int) -> None:
        """A message says that a step is ready: claim it, if it still is, and work on it. Called in a Celery thread."""
        self._slots.acquire()
        claim: Claim | None = None
        try:
            if not self.draining:
                claim = self._leases.claim(run_id, path, fence)
        except UnknownRunError:
            pass  # a message of a run that was deleted
        finally:
            if claim is None:
                self._slots.release()
        if claim is not None:
            faults.point("claim")
            self._drive(claim)

    # -- working --------------------------------------------------------------------------------------------------

    def _hold(self, claim: Claim) -> _Held:
        # A step that waits for a workflow called as a model must not keep that workflow's steps from running.
        in_slot = not str(claim.step.with_.get("model", "")).startswith(_WORKFLOW_MODEL)
        if not in_slot:
            self._slots.release()
        held = _Held(claim, in_slot)
        with self._lock:
            self._held[claim.key] = held
        return held

    def _drop(self, held: _Held) -> None:
        with self._lock:
            if self._held.get(held.claim.key) is held:
                del self._held[held.claim.key]

    def _drive(self, claim: Claim | None) -> None:
        """Work on a step and on those that follow it, in this thread as long as nothing has to be waited for."""
        while claim is not None:
            held = self._hold(claim)
            if not self._is_in_line(claim):
                self.loop.call_soon_threadsafe(self._launch, held)
                return
            claim = self._finish(held, partial(tool.run_in_line, self.work, claim))

    def _is_in_line(self, claim: Claim) -> bool:
        if claim.step.kind != "tool":
            return False
        override = claim.step.effect.class_ if claim.step.effect is not None else None
        try:
            return self.work.tools.find(claim.step.tool.tool, claim.tenant, override).in_line
        except StepFailed:
            return True  # it will fail in the same way in line

    def _launch(self, held: _Held) -> None:
        held.task = self.loop.create_task(self._wait_for(held), name=f"{held.claim.run_id}:{held.claim.path}")

    async def _wait_for(self, held: _Held) -> None:
        """Do the work of a step that waits, then hand its result to a thread that records it and goes on."""
        claim = held.claim
        try:
            async with asyncio.timeout(claim.timeout_ms / 1000):
                result = await _RUNNERS[claim.step.kind](self.work, claim)
        except asyncio.CancelledError:
            problem: BaseException = asyncio.CancelledError()
        except BaseException as failure:  # noqa: BLE001  # _finish sorts it out, in a thread
            problem = failure
        else:
            self._threads.submit(self._conclude, held, lambda: result)
            return

        def again() -> tuple[Any, str]:
            raise problem

        self._threads.submit(self._conclude, held, again)

    def _conclude(self, held: _Held, result: Callable[[], tuple[Any, str]]) -> None:
        try:
            self._drive(self._finish(held, result))
        except Exception:
            # A thread's last line of defence: the lease runs out and another worker takes the step.
            logger.exception("a step's end could not be recorded")

    def _finish(self, held: _Held, result: Callable[[], tuple[Any, str]]) -> Claim | None:
        """Get a step's result and record it; return the next step when this process has taken it."""
        following: Claim | None = None
        state, error = "succeeded", ""
        try:
            state, error, following = self._record(held, result)
        finally:
            self._drop(held)
            self.work.spans.attempt(held.claim, held.started_ns, held.clock_ns, state, error)
            if following is None and held.in_slot:
                self._slots.release()
            if following is not None and not held.in_slot:
                self._slots.acquire()
        if following is not None:
            faults.point("claim")
        return following

    def _record(self, held: _Held, result: Callable[[], tuple[Any, str]]) -> tuple[str, str, Claim | None]:
        """State, error and the next step."""
        claim = held.claim
        try:
            output, input_hash = result()
        except (Fenced, asyncio.CancelledError) as stopped:
            return self._interrupted(held, stopped), "interrupted", None
        except AmbiguousEffect as failure:
            self._persist(partial(self._leases.review, claim, failure.message))
            return "needs_review", failure.message, None
        except StepFailed as failure:
            return self._failed(claim, failure.error_class, failure.message, failure.retry_after_ms)
        except TimeoutError:
            return self._failed(claim, "timeout", f"no result within {claim.timeout_ms} ms")
        except AiriError as failure:
            return self._failed(claim, "internal", failure.message)
        except Exception as failure:
            # Whatever a step raises must end the step, not the worker; the log has the details.
            logger.exception("a step failed unexpectedly", extra={"run": claim.run_id, "step": claim.path})
            return self._failed(claim, "internal", f"unexpected {type(failure).__name__}")
        following = self._persist(
            lambda: self._leases.succeed(claim, output, input_hash, go_on=not self.draining)
        )
        faults.point("commit")
        return "succeeded", "", following

    def _failed(
        self, claim: Claim, error_class: ErrorClass, message: str, retry_after_ms: int | None = None
    ) -> tuple[str, str, None]:
        self._persist(lambda: self._leases.fail(claim, error_class, message, retry_after_ms))
        return "failed", f"{error_class}: {message}", None

    def _interrupted(self, held: _Held, stopped: BaseException) -> str:
        """Work that did not come to its end: say so, if the step is still ours."""
        if held.why == "draining":
            self._persist(lambda: self._leases.give_back(held.claim))
        elif held.why == "stopped" or isinstance(stopped, RunStopped):
            self._persist(lambda: self._leases.cancelled(held.claim))
        return "cancelled"

    def _persist(self, transaction: Callable[[], Any]) -> Any:
        """Run a transaction; try again while the database is away (the lease bounds how long that makes sense)."""
        pause = _PERSIST_PAUSE_S
        for left in reversed(range(_PERSIST_TRIES)):
            try:
                return transaction()
            except Fenced:
                return None  # somebody else has the step, or this very transaction had succeeded after all
            except DBAPIError:
                if not left:
                    raise
                time.sleep(pause)
                pause *= 2
        return None

    # -- keeping --------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Renew leases, interrupt work whose run was stopped, whose lease is lost or whose time is over."""
        renewed = 0.0
        while not self._closing.wait(self._tuning.watch_ms / 1000):
            with self._lock:
                held = list(self._held.values())
            if not held:
                continue
            try:
                self._look_after(held)
                if time.monotonic() - renewed > self._tuning.lease_ms / 4000:
                    renewed = time.monotonic()
                    kept = self._leases.renew(one.claim for one in held)
                    for one in held:
                        if one.claim.key not in kept:
                            self._interrupt(one, "fenced")
            except DBAPIError as error:
                logger.warning("leases could not be renewed: the database is away (%s)", type(error).__name__)

    def _look_after(self, held: list[_Held]) -> None:
        stopped = self._leases.stopped(one.claim.run_id for one in held)
        for one in held:
            if one.claim.run_id in stopped:
                self._interrupt(one, "stopped")
            elif one.task is None and one.overdue and not one.why:
                # A function that blocks its thread cannot be stopped; its step can be taken from it.
                one.why = "overdue"
                with contextlib.suppress(Fenced):
                    self._leases.fail(one.claim, "timeout", f"no result within {one.claim.timeout_ms} ms")

    def _interrupt(self, held: _Held, why: str) -> None:
        if not held.why:
            held.why = why
            if held.task is not None:
                self.loop.call_soon_threadsafe(held.task.cancel)

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let steps come to their end for a while, then give back those that have not."""
        self.draining = True
        deadline = time.monotonic() + self._tuning.drain_ms / 1000
        while self._held and time.monotonic() < deadline:
            time.sleep(0.02)
        with self._lock:
            left = list(self._held.values())
        for held in left:
            self._interrupt(held, "draining")
            if held.task is None:  # a function that blocks its thread: its step can go on elsewhere
                self._interrupted(held, Fenced())
                self._drop(held)
        deadline = time.monotonic() + 5
        while self._held and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        """Stop threads and loop; call :meth:`drain` first."""
        self._closing.set()
        if self._keeper.is_alive():
            self._keeper.join(5)
        if self._loop_thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close_clients(), self.loop).result(5)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._loop_thread.join(5)
        if not self._loop_thread.is_alive():
            self.loop.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _close_clients(self) -> None:
        await self.work.models.close()
        await self.work.tools.http.close()
