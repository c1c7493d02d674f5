"""A run as its page shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gateway.control.ui.graph import Drawing, Node, draw
from gateway.control.ui.words import duration, usd

ENDED = frozenset({"completed", "failed", "cancelled"})
_TONES = {
    "completed": "ok", "succeeded": "ok", "running": "run", "ready": "run", "queued": "run", "retrying": "warn", "joining": "run",
    "stopping": "warn", "waiting": "warn", "needs_review": "warn", "failed": "bad", "cancelled": "bad", "skipped": "quiet",
    "pending": "quiet",
}  # fmt: skip
_COLOURS = {
    "succeeded": "succeeded", "running": "running", "ready": "running", "retrying": "running", "joining": "running",
    "waiting": "waiting", "needs_review": "waiting", "failed": "failed", "cancelled": "failed", "skipped": "skipped",
}  # fmt: skip


def state_tone(state: str) -> str:
    """Return how a run's or step's state is coloured."""
    return _TONES.get(state, "quiet")


def graph_class(state: str) -> str:
    """Return the class of a step's box."""
    return _COLOURS.get(state, "pending")


def state_words(state: str) -> str:
    """Return a state as people say it."""
    return {"needs_review": "needs review"}.get(state, state.replace("_", " "))


@dataclass(slots=True)
class StepView:
    """A step, or one item of a fan-out. Times are Unix seconds, 0 where there is none."""

    path: str
    kind: str = ""
    state: str = "pending"
    needs: tuple[str, ...] = ()
    depth: int = 0
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    cost_usd_micros: int = 0
    tokens: int = 0
    started_s: float = 0.0
    finished_s: float = 0.0
    error: str = ""
    total: int | None = None
    remaining: int | None = None

    @property
    def note(self) -> str:
        """A few words for the box in the graph."""
        words = [self.kind]
        if self.total is not None:
            words.append(f"{self.total - (self.remaining or 0)}/{self.total}")
        if self.attempt > 1:
            words.append(f"try {self.attempt}")
        if self.cost_usd_micros:
            words.append(usd(self.cost_usd_micros))
        return " · ".join(words)


@dataclass(slots=True)
class ApprovalView:
    """A step that waits for a person. ``may_decide``: the reader's role is the one it waits for."""

    path: str
    role: str
    message: str
    may_decide: bool


@dataclass(slots=True)
class ReviewView:
    """An effect of which nobody knows whether it happened: a person decides."""

    key: str
    path: str
    name: str
    effect_class: str


@dataclass(slots=True)
class RunView:
    """A run. ``steps`` are in order of the definition, items of a fan-out under their step."""

    id: str
    workflow: str
    state: str
    tenant: str = ""
    team: str = ""
    trace_id: str = ""
    created_s: float = 0.0
    started_s: float = 0.0
    finished_s: float = 0.0
    spent_usd_micros: int = 0
    budget_usd_micros: int | None = None
    tokens: int = 0
    error: str = ""
    inputs: Any = None
    outputs: Any = None
    steps: list[StepView] = field(default_factory=list)
    approvals: list[ApprovalView] = field(default_factory=list)
    reviews: list[ReviewView] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing happens any more."""
        return self.state in ENDED

    def drawing(self) -> Drawing:
        """Return the graph of the steps, without the items of fan-outs."""
        top = [step for step in self.steps if not step.depth]
        nodes = [Node(s.path, s.needs, s.state, s.kind, s.note, f"#step-{s.path}") for s in top]
        return draw(nodes, frozenset(s.path for s in top if s.state in ("succeeded", "skipped")))

    @property
    def inputs_text(self) -> str:
        """The inputs as indented JSON."""
        return json.dumps(self.inputs, indent=2, ensure_ascii=False, default=str)

    @property
    def outputs_text(self) -> str:
        """The outputs as indented JSON."""
        return json.dumps(self.outputs, indent=2, ensure_ascii=False, default=str)


def took(run: RunView, now_s: float) -> str:
    """Return how long a run took, or has taken so far."""
    begin = run.started_s or run.created_s
    return duration(max(0.0, (run.finished_s or now_s) - begin) * 1_000_000) if begin else "–"


RUN_FILTERS = {
    "state_tone": state_tone,
    "state_words": state_words,
    "graph_class": graph_class,
    "run_took": took,
}
