"""Errors of the room ``policies/``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airi.errors import (
    AiriError,
    ConflictError,
    InvalidRequestError,
    PermissionDeniedError,
    RateLimitError,
    UnavailableError,
)

if TYPE_CHECKING:
    from policies.engine_types import PolicyDecision


class LimitExceededError(RateLimitError):
    """A rate or a concurrency limit is reached; time helps (429)."""

    code = "rate_limit_exceeded"


class BudgetExceededError(RateLimitError):
    """A budget cannot pay for the call (429); ``retry_after_ms`` is the end of its window, if it has one."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class RunBudgetExceededError(BudgetExceededError):
    """The grant of a run cannot pay for the call (429)."""

    code = "run_budget_exceeded"


class RequestTooLargeError(InvalidRequestError):
    """The call asks for more than the limit ever allows at once (400): waiting would not help."""

    code = "request_exceeds_limit"


class RunCancelledError(ConflictError):
    """The run was cancelled; no new call of it starts (409)."""

    code = "run_cancelled"


class IdempotencyConflictError(ConflictError):
    """The idempotency key was used with another body (409)."""

    code = "idempotency_conflict"


class IdempotencyInProgressError(ConflictError):
    """A call with the same idempotency key and body is running (409); try again after ``retry_after_ms``."""

    code = "idempotency_in_progress"


class AdmissionUnavailableError(UnavailableError):
    """Admission cannot decide now (503): Redis is away, or money is being rebuilt."""

    code = "admission_unavailable"


class LedgerError(AiriError):
    """The ledger cannot do what was asked."""

    code = "ledger_error"


class PolicyDeniedError(PermissionDeniedError):
    """A policy does not let the call, or the rest of its answer, pass (403). ``decision`` says which and why."""

    type = "policy_error"
    code = "policy_denied"

    def __init__(self, decision: PolicyDecision) -> None:
        said = decision.message or f"The policy '{decision.policy}' does not allow this ({decision.reason})."
        super().__init__(said)
        self.decision = decision


class PolicyInputError(InvalidRequestError):
    """What was handed to a policy test or to ``explain`` cannot be understood (400)."""

    code = "invalid_policy_input"
