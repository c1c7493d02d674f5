"""``POST /admin/v1/apply``: many resources as one version, or the difference that they would make."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from airi.config.composer import MAX_BYTES
from airi.config.edits import SealedValue
from airi.config.loader import LoadedResource, load_data, load_text
from airi.config.secrets import seal_values
from airi.errors import AiriError, InvalidRequestError
from gateway.control.admin.views import result_view
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services

_YAML = ("application/yaml", "application/x-yaml", "text/yaml")
_JSON = "application/json"


class Options(BaseModel):
    """How a bundle is applied."""

    model_config = ConfigDict(extra="forbid")

    manager: Literal["file", "api"] = "file"
    prune: bool = False
    """Remove what the same manager holds and the bundle lacks."""
    take_over: bool = False
    """Make resources of the other manager this one's."""
    dry_run: bool = False
    """Check everything and return the difference; write nothing."""
    expected_version: int | None = Field(default=None, ge=0)
    """Refuse unless this version still serves."""
    comment: str = Field(default="", max_length=2_000)


class BundleTooLargeError(AiriError):
    """The bundle is larger than one request may be (413)."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


def router(services: Services) -> APIRouter:
    """Return the route."""
    routes = APIRouter(prefix=ADMIN, tags=["configuration"])
    writer = Depends(require(services, "platform.write"))

    @routes.post("/apply", summary='Apply a bundle: JSON {"resources": […]}, or YAML documents')
    async def apply(
        request: Request, options: Annotated[Options, Query()], who: Principal = writer
    ) -> dict[str, Any]:
        body = await _body(request)
        is_yaml = request.headers.get("content-type", _JSON).partition(";")[0].strip() in _YAML
        # In a thread: reading and checking 2,000 resources takes most of a second.
        return await asyncio.to_thread(_apply, services, who, options, body, is_yaml)

    return routes


def _apply(
    services: Services, who: Principal, options: Options, body: bytes, is_yaml: bool
) -> dict[str, Any]:
    sealed: list[SealedValue] = []
    result = services.config_store.apply(
        _from_yaml(body) if is_yaml else _from_json(body, options, sealed),
        author=who.actor,
        manager=options.manager,
        prune=options.prune,
        take_over=options.take_over,
        dry_run=options.dry_run,
        expected_version=options.expected_version,
        comment=options.comment,
        secrets=sealed,
    )
    return result_view(result)


def _from_yaml(body: bytes) -> list[LoadedResource]:
    try:
        return load_text(body.decode("utf-8-sig"), "bundle")
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the bundle is not UTF-8 text") from error


def _from_json(body: bytes, options: Options, sealed: list[SealedValue]) -> list[LoadedResource]:
    """Read ``{"resources": […]}``; secrets given as values are sealed for the API, refused for files."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise InvalidRequestError("the body is not valid JSON") from error
    resources = data.get("resources") if isinstance(data, dict) else None
    if not isinstance(resources, list):
        raise InvalidRequestError('expected {"resources": [ … ]}', param="resources")
    if options.manager == "api":
        resources = [
            seal_values(item, lambda name, value: sealed.append((name, value)))
            if isinstance(item, dict)
            else item
            for item in resources
        ]
    return load_data(resources)


async def _body(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BYTES:
            raise BundleTooLargeError(
                f"a bundle has at most {MAX_BYTES // 1024 // 1024} MiB; apply it in parts"
            )
        chunks.append(chunk)
    return b"".join(chunks)
