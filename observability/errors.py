"""Failures of the record's own machinery. None of them may reach a call."""

from __future__ import annotations

from airi.errors import AiriError, InvalidRequestError, NotFoundError, UnavailableError


class WireError(AiriError):
    """A peer on the writer's socket does not speak the protocol; its connection is closed."""

    code = "record_wire_error"


class InvalidFilterError(InvalidRequestError):
    """A filter, cursor or time range of a query cannot be understood (400)."""

    code = "invalid_filter"


class UnknownTraceError(NotFoundError):
    """There is no record of that trace, or it belongs to another tenant (404)."""

    code = "trace_not_found"


class QueryTooLargeError(InvalidRequestError):
    """A query ran into its time limit; the message says how to narrow it (400)."""

    code = "query_too_large"


class WriterUnavailableError(UnavailableError):
    """The record writer does not answer; calls go on, what is live cannot be shown (503)."""

    code = "record_writer_unavailable"


class RecordStoreError(AiriError):
    """The day's file cannot be used; the message names it."""

    code = "record_store_error"
