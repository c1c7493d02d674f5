"""Admission's questions and answers, as the gateway sees them. Money is in micro-dollars, time in milliseconds."""

from __future__ import annotations

from typing import Literal

import msgspec

from airi.errors import AiriError
from policies.errors import (
    AdmissionUnavailableError,
    BudgetExceededError,
    IdempotencyConflictError,
    IdempotencyInProgressError,
    LimitExceededError,
    RequestTooLargeError,
    RunBudgetExceededError,
    RunCancelledError,
)
from policies.limits import Scopes

RefusalKind = Literal[
    "requests",
    "tokens",
    "concurrency",
    "budget",
    "run_budget",
    "too_large",
    "cancelled",
    "epoch",
    "unavailable",
]


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a call asks for. ``estimated_tokens`` (input and learned output) is charged to tokens a minute."""

    reservation_id: str
    scopes: Scopes
    estimated_tokens: int
    input_usd_micros: int = 0
    """Upper bound of what the input costs at the dearest reachable target."""
    output_usd_micros_per_million: int = 0
    """Price of a million output tokens there, times the number of choices (``n``)."""
    output_tokens: int = 0
    """Output per choice that is wished for; hard budgets may grant less."""
    min_output_tokens: int = 1
    """Refuse rather than grant less; 0 for calls without output (embeddings)."""
    estimate_usd_micros: int = 0
    """Learned estimate of the whole cost: what soft budgets hold."""
    user: str | None = None
    lease_ms: int = 15_000
    idempotency: tuple[str, str] | None = None
    """The caller's idempotency key and a digest of the body."""
    run_id: str | None = None
    step: str | None = None
    run_budget_usd_micros: int | None = None
    """The most that this one call may cost: a grant that the run has reserved already."""
    trace_id: str = ""


class Rate(msgspec.Struct, frozen=True):
    """The tightest scope of one rate after this call: limit a minute, what is left, when all of it is back."""

    limit: int
    remaining: int
    reset_ms: int


class Admitted(msgspec.Struct, frozen=True):
    """The call may go. Send at most ``output_tokens`` as ``max_tokens``: that is what was reserved."""

    reservation_id: str
    output_tokens: int
    hold_usd_micros: int
    snapshot: int
    keys: int
    requests: Rate | None = None
    tokens: Rate | None = None
    degraded: bool = False
    """Redis was away and the call has no hard budget: it was let in under a local cap, uncounted as yet."""

    def head(self) -> bytes:
        """Return OpenAI's rate-limit headers as a block of lines, each ended by CRLF."""
        block = b""
        for name, rate in ((b"requests", self.requests), (b"tokens", self.tokens)):
            if rate is not None:
                block += (
                    b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n"
                    % (name, rate.limit, name, max(0, rate.remaining), name, format_reset(rate.reset_ms))
                )
        return block


class Refused(msgspec.Struct, frozen=True):
    """The call may not go. ``scope`` names whose limit it was; ``retry_after_ms`` is 0 when time does not help."""

    kind: RefusalKind
    scope: str
    limit: int = 0
    remaining: int = 0
    retry_after_ms: int = 0
    snapshot: int = 0
    keys: int = 0

    def error(self) -> AiriError:
        """Return the error that the caller is told."""
        retry = self.retry_after_ms or None
        limit, remaining, scope = self.limit, self.remaining, self.scope
        match self.kind:
            case "too_large":
                return RequestTooLargeError(
                    f"the call asks for {remaining} at once, and {scope} allows {limit} a minute: ask for less output "
                    "(max_tokens) or send a shorter input"
                )
            case "budget":
                return BudgetExceededError(
                    f"the budget {scope} has {usd(remaining)} of {usd(limit)} left, less than this call may cost",
                    retry_after_ms=retry,
                )
            case "run_budget":
                return RunBudgetExceededError(
                    f"the run's grant for this call ({usd(limit)}) cannot pay for it"
                )
            case "cancelled":
                return RunCancelledError("the run was cancelled; no new call of it starts")
            case "epoch":
                return AdmissionUnavailableError(
                    "budgets are being rebuilt after Redis was restarted or lost its data; try again shortly",
                    code="budgets_rebuilding",
                    retry_after_ms=retry,
                )
            case "unavailable":
                return AdmissionUnavailableError(self.scope, retry_after_ms=retry)
        what = {
            "requests": "requests a minute",
            "tokens": "tokens a minute",
            "concurrency": "concurrent calls",
        }
        return LimitExceededError(
            f"the limit of {limit} {what[self.kind]} of {scope} is reached", retry_after_ms=retry
        )


class Replay(msgspec.Struct, frozen=True):
    """A call with this idempotency key and body is finished; its reply is in the content store."""

    reference: str


class InProgress(msgspec.Struct, frozen=True):
    """A call with this idempotency key and body is running."""

    retry_after_ms: int

    def error(self) -> AiriError:
        """Return the error that the caller is told."""
        return IdempotencyInProgressError(
            "a call with this idempotency-key is running; ask again for its answer",
            retry_after_ms=self.retry_after_ms,
        )


class Conflicting(msgspec.Struct, frozen=True):
    """The idempotency key was used with another body."""

    def error(self) -> AiriError:
        """Return the error that the caller is told."""
        return IdempotencyConflictError("this idempotency-key was used with another request body")


Decision = Admitted | Refused | Replay | InProgress | Conflicting


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a call cost in the end. ``idempotency_reference`` keeps the reply for 24 h; without it the key is free again."""

    reservation_id: str
    usd_micros: int
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    outcome: str = "ok"
    version: str = ""
    target: str = ""
    trace_id: str = ""
    usage_source: str = ""
    price_source: str = ""
    simulated: bool = False
    idempotency_reference: str | None = None


def usd(micros: int) -> str:
    """Return dollars as people read them: at least cents, more where there is more."""
    whole, rest = divmod(micros, 1_000_000)
    digits = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"${whole}.{digits}"


def format_reset(ms: int) -> bytes:
    """Return a time as OpenAI's reset headers give it: ``120ms``, ``1.5s``, ``6m0s``."""
    if ms < 1_000:
        return b"%dms" % max(0, ms)
    minutes, rest = divmod(ms, 60_000)
    seconds = f"{rest / 1_000:.3f}".rstrip("0").rstrip(".")
    return (f"{minutes}m{seconds}s" if minutes else f"{seconds}s").encode()
