"""The dashboard's routes, put together; signing in and out; static files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from airi.errors import AuthenticationError, NotFoundError, PermissionDeniedError
from gateway.control.auth import Principal, clear_session, require, set_session, sign_in
from gateway.control.routing import add
from gateway.control.services import Services
from gateway.control.traces import records_of
from gateway.control.ui import calls, runs
from gateway.control.ui.frame import Frame
from gateway.control.ui.pages import STATIC, PageRoute, local_path, render

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_A_YEAR = "public, max-age=31536000, immutable"


def router(services: Services) -> APIRouter:
    """Return everything under ``/ui``."""
    records = records_of(services)
    frame = Frame(services, records)
    routes = APIRouter(route_class=PageRoute, include_in_schema=False)
    _add_session(routes, services)
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in _KINDS}

    @routes.get("/")
    @routes.get("/ui")
    async def home() -> Response:
        return RedirectResponse("/ui/calls", 303)

    @routes.get("/ui/static/{name}")
    async def static(name: str) -> Response:
        path = files.get(name)
        if path is None:
            raise NotFoundError("There is no such file.")
        return FileResponse(path, media_type=_KINDS[path.suffix], headers={"cache-control": _A_YEAR})

    add(routes, calls.router(services, records, frame), runs.router(services, records, frame))
    return routes


def _add_session(routes: APIRouter, services: Services) -> None:
    known = Depends(require(services))

    @routes.get("/ui/sign-in")
    async def form(next: str = "/ui") -> Response:  # noqa: A002  # the URL's word
        return render("sign_in.html", title="Sign in", next=local_path(next), message="")

    @routes.post("/ui/sign-in")
    async def enter(
        request: Request,
        key: Annotated[str, Form(max_length=512)] = "",
        next: Annotated[str, Form(max_length=2_048)] = "/ui",  # noqa: A002  # the form's word
    ) -> Response:
        # There is no session yet that a token could belong to: the browser's own word is what there is.
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise PermissionDeniedError("Another site tried to sign you in.")
        try:
            who, cookie = await sign_in(services, key)
            if not who.may("records.read"):
                raise AuthenticationError(
                    f"A key of role “{who.role}” may call models, but has nothing to see here."
                )
        except AuthenticationError as error:
            return render("sign_in.html", 401, title="Sign in", next=local_path(next), message=error.message)
        response = RedirectResponse(local_path(next), 303)
        set_session(services, request, response, cookie)
        return response

    @routes.post("/ui/sign-out")
    async def leave(who: Principal = known) -> Response:
        response = RedirectResponse("/ui/sign-in", 303)
        clear_session(response)
        return response
