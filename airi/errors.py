"""Errors that reach a caller. Each one says what happened and what the person can do about it.

Every room's `errors.py` derives from :class:`AiriError`; the gateway turns it into OpenAI's error form
``{"error": {"message", "type", "param", "code"}}`` with :attr:`AiriError.status`.
"""

from __future__ import annotations


class AiriError(Exception):
    """A failure with a public face.

    ``status`` is the HTTP status, ``type`` and ``code`` are OpenAI's words where OpenAI has them,
    ``param`` names the offending field, ``retry_after_ms`` becomes ``Retry-After`` (rounded up to seconds).
    The message must never hold a secret or a caller's content.
    """

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        type: str | None = None,  # noqa: A002  # OpenAI's word
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type


class InvalidRequestError(AiriError):
    """The request cannot be understood or is not allowed in this form (400)."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class AuthenticationError(AiriError):
    """No key, or a key that is unknown, revoked or expired (401)."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class PermissionDeniedError(AiriError):
    """The key is known but may not do this (403)."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFoundError(AiriError):
    """There is no such thing, or the caller may not see it (404)."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ConflictError(AiriError):
    """The state of the thing does not admit the request (409)."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class RateLimitError(AiriError):
    """A limit, a budget or a queue is full (429)."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UnavailableError(AiriError):
    """A dependency is away or the process is draining (503)."""

    status = 503
    type = "server_error"
    code = "service_unavailable"


class ConfigError(AiriError):
    """A configuration that is refused whole. ``problems`` lists each fault with file, line and key."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_configuration"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
