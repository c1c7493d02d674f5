"""Every error of the control plane in OpenAI's form, on every path; below ``/v1/messages/`` in Anthropic's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import TimeoutError as RedisTimeout
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException

from airi.errors import AiriError, ConfigError, UnavailableError
from gateway.dialects.anthropic.answer import error_body
from gateway.dialects.front import passed_error

_log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(AiriError, _in_dialect(_airi))
    app.add_exception_handler(RequestValidationError, _in_dialect(_validation))
    app.add_exception_handler(HTTPException, _in_dialect(_http))
    for away in (OperationalError, NoConnection, RedisAway, RedisTimeout):
        app.add_exception_handler(away, _in_dialect(_away))
    app.add_exception_handler(Exception, _in_dialect(_unexpected))


def _in_dialect(
    handler: Callable[[Request, Exception], JSONResponse],
) -> Callable[[Request, Exception], Response]:
    """Return ``handler`` with its answers in the dialect of the path."""

    def answer(request: Request, error: Exception) -> Response:
        said = handler(request, error)
        if not request.scope["path"].startswith("/v1/messages/"):
            return said
        said.body = error_body(passed_error(said.status_code, bytes(said.body)))
        said.headers["content-length"] = str(len(said.body))
        return said

    return answer


def error_response(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """Return ``{"error": {"message", "type", "param", "code"}}``; ``more`` is added inside."""
    body = {"message": message, "type": kind, "param": param, "code": code, **more}
    return JSONResponse({"error": body}, status, headers)


def from_error(error: AiriError) -> JSONResponse:
    """Return the response of an :class:`AiriError`, with ``Retry-After`` and a configuration's problems."""
    headers = {}
    if error.retry_after_ms is not None:
        headers["retry-after"] = str(max(1, -(-error.retry_after_ms // 1_000)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    more: dict[str, Any] = {"problems": error.problems} if isinstance(error, ConfigError) else {}
    return error_response(
        error.status,
        error.message,
        type=error.type,
        code=error.code,
        param=error.param,
        headers=headers,
        **more,
    )


def _airi(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AiriError)
    return from_error(error)


def _validation(_request: Request, error: Exception) -> JSONResponse:
    """Name the first wrong field; never its value, which may be a secret."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(path) or None
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return error_response(400, message, code="invalid_request", param=param)


def _http(request: Request, error: Exception) -> JSONResponse:
    """Say what the framework refused, in the words that the data plane has for it."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    message = error.detail if isinstance(error.detail, str) else phrase
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    headers = dict(error.headers) if error.headers else None
    path = request.scope["path"][:200]
    if message == phrase and error.status_code == HTTPStatus.NOT_FOUND:
        message, code = f"There is nothing at {request.method} {path}.", "unknown_url"
    elif (
        error.status_code == HTTPStatus.METHOD_NOT_ALLOWED
        and headers
        and "allow" in {h.lower() for h in headers}
    ):
        allowed = next(value for name, value in headers.items() if name.lower() == "allow")
        message = f"{path} takes {allowed}."
    return error_response(error.status_code, message, kind=kind, code=code, headers=headers)


def _away(request: Request, error: Exception) -> JSONResponse:
    _log.error(
        "a store is away", exc_info=error, extra={"method": request.method, "path": request.scope["path"]}
    )
    what = "Redis" if isinstance(error, RedisAway | RedisTimeout) else "The database"
    return from_error(UnavailableError(f"{what} is not answering. Try again.", retry_after_ms=1_000))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error(
        "unexpected error", exc_info=error, extra={"method": request.method, "path": request.scope["path"]}
    )
    return error_response(
        500,
        "Something went wrong in AIRI; the log has the details.",
        kind="server_error",
        code="internal_error",
    )
