"""Every error of the control plane in OpenAI's form, on every path."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import TimeoutError as RedisTimeout
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException

from airi.errors import AiriError, ConfigError, UnavailableError

_log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(AiriError, _airi)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    for away in (OperationalError, NoConnection, RedisAway, RedisTimeout):
        app.add_exception_handler(away, _away)
    app.add_exception_handler(Exception, _unexpected)


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


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    message = error.detail if isinstance(error.detail, str) else phrase
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    headers = dict(error.headers) if error.headers else None
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
