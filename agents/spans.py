"""The record of a run's pieces: each attempt of a step, each agent turn, each tool call, each run as a whole.

A run may live for days, so it is no single span: every attempt is a root of its own, stitched by the run's id and
trace. Records are best effort and never hold content; what must not be lost is in the runs database.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from agents.errors import AmbiguousEffect, Fenced, StepFailed
from agents.leases import Claim
from airi.errors import AiriError
from airi.ids import new_span_id
from observability.record import SpanRecord


class SpanSink(Protocol):
    """The part of :class:`observability.emitter.Emitter` that runs need."""

    def emit_span(self, span: SpanRecord) -> None:
        """Take a finished span; never blocks, never raises."""


class Spans:
    """Writes the spans of one process; without a sink it does nothing."""

    def __init__(self, sink: SpanSink | None, process: str) -> None:
        self._sink = sink
        self._process = process

    @contextmanager
    def piece(
        self, claim: Claim, kind: str, name: str, *, span_id: str | None = None, effect: str = ""
    ) -> Iterator[None]:
        """A part of an attempt: an agent's turn or a tool call."""
        started = time.time_ns()
        clock = time.monotonic_ns()
        state, error = "succeeded", ""
        try:
            yield
        except BaseException as failure:  # noted and raised again
            state, error = _ending(failure)
            raise
        finally:
            self._emit(
                claim, kind, name, started, clock, state, error,
                span_id=span_id or new_span_id(), parent_span_id=claim.span_id, tool_effect=effect,
            )  # fmt: skip

    def attempt(self, claim: Claim, started_ns: int, clock_ns: int, state: str, error: str = "") -> None:
        """An attempt of a step that has ended."""
        self._emit(
            claim, "step", claim.path, started_ns, clock_ns, state, error, span_id=claim.span_id,
            details={"call": claim.step.kind, **_named(claim)},
        )  # fmt: skip

    def run(self, run: Any, state: str, now_ms: int) -> None:
        """A run that has ended (``run`` is its row)."""
        if self._sink is None:
            return
        self._sink.emit_span(
            SpanRecord(
                trace_id=run.trace_id, span_id=run.traceparent.split("-")[2], tenant=run.tenant, kind="workflow",
                name=run.workflow, started_unix_ns=run.created_at * 1_000_000,
                duration_us=max(0, now_ms - run.created_at) * 1_000, process=self._process, run_id=run.id,
                workflow=run.workflow, state="succeeded" if state == "completed" else state,
            )
        )  # fmt: skip

    def _emit(
        self,
        claim: Claim,
        kind: str,
        name: str,
        started_ns: int,
        clock_ns: int,
        state: str,
        error: str,
        **more: Any,
    ) -> None:
        if self._sink is None:
            return
        self._sink.emit_span(
            SpanRecord(
                trace_id=claim.trace_id, tenant=claim.tenant, kind=kind, name=name, started_unix_ns=started_ns,
                duration_us=(time.monotonic_ns() - clock_ns) // 1_000, process=self._process, run_id=claim.run_id,
                workflow=claim.workflow, step=claim.path, attempt=claim.attempt, state=state, error=error,
                **{"parent_span_id": claim.traceparent.split("-")[2], **more},
            )
        )  # fmt: skip


def _named(claim: Claim) -> dict[str, str]:
    """The model or the tool that a step names."""
    found = claim.step.with_.get("model") or claim.step.with_.get("tool") or ""
    return {"uses": str(found)[:160]} if found else {}


def _ending(failure: BaseException) -> tuple[str, str]:
    """State and error of a piece that did not succeed; only AIRI's own sentences."""
    if isinstance(failure, AmbiguousEffect):
        return "needs_review", failure.message
    if isinstance(failure, StepFailed):
        return "failed", f"{failure.error_class}: {failure.message}"
    if isinstance(failure, AiriError):
        return "failed", failure.code
    if isinstance(failure, Fenced):
        return "cancelled", "the step was taken over or stopped"
    return "cancelled" if not isinstance(failure, Exception) else "failed", type(failure).__name__
