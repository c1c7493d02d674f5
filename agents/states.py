"""The states of runs and steps, and which of them mean that something still happens."""

from __future__ import annotations

RUN_ENDED = frozenset({"completed", "failed", "cancelled"})
"""Nothing happens any more."""
RUN_STARTS_EFFECTS = frozenset({"running", "waiting", "needs_review"})
"""States in which steps may begin and effects may start (``waiting``: all that is left waits)."""
STEP_SATISFIED = frozenset({"succeeded", "skipped"})
STEP_ENDED = frozenset({"succeeded", "skipped", "failed", "cancelled"})
STEP_MOVES = frozenset({"ready", "running", "retrying", "joining"})
"""A worker works on it, or will without anybody's help. ``joining`` is a fan-out whose items run."""
