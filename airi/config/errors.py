"""Errors of the configuration store. What is wrong *in* a configuration is :class:`airi.errors.ConfigError`."""

from __future__ import annotations

from airi.errors import AiriError, ConflictError, NotFoundError


class ManagerConflictError(ConflictError):
    """A resource is managed from elsewhere; changing it here would be undone there (409)."""

    code = "managed_elsewhere"


class StaleVersionError(AiriError):
    """The thing changed since the caller read it (412)."""

    status = 412
    type = "invalid_request_error"
    code = "precondition_failed"


class UnknownResourceError(NotFoundError):
    """There is no such resource, or no such version."""
