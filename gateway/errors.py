"""Errors in OpenAI's form, and the gateway's own kinds."""

from __future__ import annotations

import msgspec

from airi.errors import AiriError

_encode = msgspec.json.Encoder().encode


class MethodNotAllowedError(AiriError):
    """The path exists, the method does not (405). ``allow`` lists those that do."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class UnsupportedMediaTypeError(AiriError):
    """The body is not JSON (415)."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class UpstreamStreamError(AiriError):
    """The upstream ended its stream without its terminal event, or said that it failed (502, after the first byte)."""

    status = 502
    type = "upstream_error"
    code = "upstream_stream_incomplete"


class OverloadedError(AiriError):
    """This process has as many calls as it takes (503)."""

    status = 503
    type = "server_error"
    code = "overloaded"


def error_body(error: AiriError) -> bytes:
    """Return ``{"error": {"message", "type", "param", "code"}}`` as JSON."""
    return _encode(
        {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    )


_TRANSPORT_CODES = {
    405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large", 431: "headers_too_large",
    500: "internal_error", 503: "overloaded",
}  # fmt: skip


def transport_error_body(status: int, message: str) -> bytes:
    """Return the body of an error found below the pipeline, by the HTTP server."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = _TRANSPORT_CODES.get(status, "invalid_http")
    return _encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
