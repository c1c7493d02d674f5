"""What can go wrong in the agent runtime, and the classes of failure that ``retry.on`` names."""

from __future__ import annotations

from typing import Literal, get_args

from airi.errors import AiriError, ConflictError, InvalidRequestError, NotFoundError, UnavailableError

ErrorClass = Literal[
    "rate_limit",
    "timeout",
    "5xx",
    "connection",
    "4xx",
    "policy",
    "budget",
    "invalid_output",
    "tool",
    "expression",
    "max_turns",
    "rejected",
    "poison",
    "ambiguous",
    "internal",
]
"""The class of a step's failure. ``retry.on`` lists those that are worth another attempt."""
ERROR_CLASSES: tuple[str, ...] = get_args(ErrorClass)
RETRYABLE: tuple[ErrorClass, ...] = ("rate_limit", "timeout", "5xx", "connection")
"""What ``retry`` repeats when it does not say otherwise."""


class StepFailed(Exception):  # noqa: N818  # it says what happened to the step
    """A step's attempt ended without a result.

    ``error_class`` decides whether it is tried again; the message is AIRI's own sentence and never holds
    content of the run; ``retry_after_ms`` is what the other side asked for; ``spent`` is what the failed call has
    cost all the same, in micro-dollars (a workflow that was called as a model).
    """

    def __init__(
        self, error_class: ErrorClass, message: str, *, retry_after_ms: int | None = None, spent: int = 0
    ) -> None:
        super().__init__(message)
        self.spent = spent
        self.error_class: ErrorClass = error_class
        self.message = message
        self.retry_after_ms = retry_after_ms


class AmbiguousEffect(StepFailed):
    """An unsafe effect may or may not have happened: a person decides, nothing is repeated blindly."""

    def __init__(self, message: str) -> None:
        super().__init__("ambiguous", message)


class Fenced(Exception):  # noqa: N818  # a state, not a fault
    """The step belongs to another worker by now (or its run has stopped): nothing may be written."""


class RunStopped(Fenced):
    """The run no longer starts effects: it was cancelled, has failed or is finished."""


class UnknownRunError(NotFoundError):
    """There is no such run, or the caller may not see it."""

    code = "run_not_found"


class UnknownWorkflowError(NotFoundError):
    """There is no workflow of that name."""

    code = "workflow_not_found"


class InputError(InvalidRequestError):
    """The inputs do not satisfy the workflow's schema."""

    code = "invalid_inputs"


class RunStateError(ConflictError):
    """The run's state does not admit the command."""

    code = "run_state"


class RunConflictError(ConflictError):
    """The idempotency key was used for a run with other inputs."""

    code = "idempotency_conflict"


class TooDeepError(InvalidRequestError):
    """Workflows call each other as models more deeply than AIRI allows."""

    code = "workflow_too_deep"


class ToolError(AiriError):
    """A tool says that it did not do what it was asked; raise it from function tools.

    It is a definite answer: nothing was applied. An agent sees the message, a ``tool`` step fails with it.
    """

    status = 502
    code = "tool_error"


class ToolRefusedError(ToolError):
    """A tool must not be called in this way (address, arguments, size)."""

    code = "tool_refused"


class RunsBusyError(UnavailableError):
    """More callers wait for runs than the control plane serves at once."""

    code = "runs_busy"
