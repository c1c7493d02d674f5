"""What can go wrong between choosing a place for a call and its last byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airi.errors import AiriError, InvalidRequestError, NotFoundError, RateLimitError, UnavailableError
from airi.http.errors import HttpClientError

if TYPE_CHECKING:
    from routing.call import Attempt


class UnknownModelError(NotFoundError):
    """No alias of this name serves (404). The message carries the nearest name when there is one."""

    code = "model_not_found"

    def __init__(self, alias: str, suggestion: str | None = None) -> None:
        hint = f" Did you mean '{suggestion}'?" if suggestion else ""
        super().__init__(
            f"The model '{alias}' does not exist or you do not have access to it.{hint}", param="model"
        )
        self.suggestion = suggestion


class ContractError(InvalidRequestError):
    """The model cannot do what the request asks for (400); ``param`` names the field."""

    code = "unsupported_by_model"


class Unserved(AiriError):  # noqa: N818  # a trait of errors, not an error that is raised
    """What errors carry that end a call without an answer: every try (:class:`routing.call.Attempt`), in order."""

    attempts: tuple[Attempt, ...] = ()


class QueueFullError(Unserved, RateLimitError):
    """The waiting room of a pool is full (429 with ``Retry-After``)."""

    code = "queue_full"


class QueueTimeoutError(Unserved, UnavailableError):
    """The call waited as long as its pool lets calls wait (503 with ``Retry-After``)."""

    code = "queue_timeout"


class NoTargetError(Unserved, UnavailableError):
    """Every place that could serve the call is known to be failing (503 with ``Retry-After``)."""

    code = "no_target_available"


class UpstreamError(Unserved):
    """The upstream could not be reached, broke off, or answered what must not be passed on (502).

    ``reached`` says whether the request may have been worked on upstream.
    """

    status = 502
    code = "upstream_error"

    def __init__(
        self, message: str, *, code: str | None = None, status: int | None = None, reached: bool = True
    ) -> None:
        super().__init__(message, code=code, status=status)
        self.reached = reached


class UpstreamTimeoutError(UpstreamError):
    """The upstream took longer than its time-outs or the call's deadline allow (504)."""

    status = 504
    code = "upstream_timeout"


class NotConfigured(HttpClientError):  # noqa: N818  # reads as the event it reports
    """Nothing can be sent: a secret or a TLS file is missing on this machine, and no moment of waiting brings it (503)."""

    status = 503
    code = "upstream_not_configured"
    reached_upstream = False


class KnownBadVersionError(AiriError):
    """The installed litellm is a version that must not be imported (a malicious or broken release)."""

    code = "dependency_refused"
