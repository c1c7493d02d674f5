"""What a gateway process answers: model routes through the pipeline, a few small ones itself, the rest by the control plane."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import msgspec

from airi.errors import AiriError, NotFoundError, UnavailableError
from airi.http.server import Request
from airi.ids import new_trace_id
from gateway.errors import MethodNotAllowedError, transport_error_body
from gateway.heads import JSON, json_head, retry_after
from gateway.operations import OPERATIONS, Operation, error_form
from gateway.pipeline import Pipeline
from gateway.proxy import is_control_path
from gateway.runtime import Runtime
from gateway.stages.authenticate import bearer, find_key
from routing.registry import Route

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("airi.gateway")
Route_ = Callable[[Request], Awaitable[None]]


class DataPlane:
    """The handler of the HTTP server. Every path is in exactly one of: operations, own routes, control paths."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pipeline = Pipeline(runtime)
        self._own: dict[str, Route_] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/v1/models": self._models,
        }

    async def handle(self, request: Request) -> None:
        """Answer one request; whatever goes wrong is answered in OpenAI's form."""
        operation = OPERATIONS.get(request.path)
        try:
            if operation is not None:
                if request.method != "POST":
                    raise MethodNotAllowedError(f"{request.path} takes POST.", allow="POST")
                if self._runtime.draining:
                    raise UnavailableError(
                        "This gateway is shutting down; another one will serve you.", retry_after_ms=1_000
                    )
                await self._pipeline.run(request, operation)
            else:
                await self._rare(request)
        except AiriError as error:
            self._refuse(request, error, operation)
        except Exception:  # noqa: BLE001
            # The last line: a fault of ours is logged here and answered without its details.
            _log.exception("a request failed inside the gateway", extra={"path": request.path})
            self._refuse(
                request, AiriError("AIRI failed to serve this request; its log says why."), operation
            )

    async def _rare(self, request: Request) -> None:
        path = request.path
        own = self._own.get(path)
        if own is not None:
            _only_get(request, path)
            await own(request)
        elif path.startswith("/v1/models/"):
            _only_get(request, "/v1/models/{model}")
            await self._model(request)
        elif is_control_path(path):
            await self._runtime.control.forward(request, "req_" + new_trace_id())
        else:
            raise NotFoundError(f"There is nothing at {request.method} {path[:200]}.", code="unknown_url")

    @staticmethod
    def _refuse(request: Request, error: AiriError, operation: Operation | None) -> None:
        if request.started:
            if not request.finished:
                request.finish()
            return
        block = json_head() + retry_after(error)
        if isinstance(error, MethodNotAllowedError):
            block += b"allow: %b\r\n" % error.allow.encode()
        request.respond(error.status, block, error_form(operation, error))

    @staticmethod
    async def _healthz(request: Request) -> None:
        request.respond(200, JSON, b'{"status":"ok"}')

    async def _readyz(self, request: Request) -> None:
        missing = self._runtime.missing()
        body = {
            "status": "unavailable" if missing else "ready",
            "missing": missing,
            "snapshot": self._runtime.snapshot.digest,
        }
        if self._runtime.watcher.problem:
            body["configuration_problem"] = self._runtime.watcher.problem
        request.respond(503 if missing else 200, JSON, _encode(body))

    async def _models(self, request: Request) -> None:
        key = await find_key(self._runtime, bearer(request))
        data = [_model_object(route) for route in self._runtime.snapshot.models_of(key)]
        request.respond(200, json_head(), _encode({"object": "list", "data": data}))

    async def _model(self, request: Request) -> None:
        key = await find_key(self._runtime, bearer(request))
        # OpenAI's SDKs send the slash of "sim/small" as %2F.
        plan = self._runtime.snapshot.plan(key, unquote(request.path.removeprefix("/v1/models/")))
        request.respond(200, json_head(), _encode(_model_object(plan.route)))


def transport_error(status: int, message: str) -> tuple[bytes, bytes]:
    """Return header lines and body for what the HTTP server itself refuses."""
    return json_head(), transport_error_body(status, message)


def _only_get(request: Request, path: str) -> None:
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowedError(f"{path} takes GET.", allow="GET, HEAD")


def _model_object(route: Route) -> dict[str, Any]:
    return {
        "id": route.alias,
        "object": "model",
        "created": 0,
        "owned_by": "airi",
        "version": route.version,
        "simulated": route.simulated,
    }
