"""How pages are rendered: templates, headers, and errors as pages instead of JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import ValidationError

from airi.errors import AiriError, AuthenticationError
from gateway.control.ui.run_view import RUN_FILTERS
from gateway.control.ui.words import FILTERS

HERE = Path(__file__).parent
STATIC = HERE / "static"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def _assets_version() -> str:
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.filters.update(RUN_FILTERS)
    made.globals["assets"] = _assets_version()
    return made


TEMPLATES = _environment()


def render(template: str, code: int = 200, /, **context: Any) -> HTMLResponse:
    """Return a page."""
    return HTMLResponse(TEMPLATES.get_template(template).render(**context), code)


def link(path: str, values: dict[str, Any], **changes: Any) -> str:
    """Return a path with query: ``values`` with ``changes``, what is empty left out."""
    merged = {**values, **changes}
    query = urlencode({name: value for name, value in merged.items() if value not in ("", None)})
    return f"{path}?{query}" if query else path


def local_path(text: str) -> str:
    """Return where to go after signing in: only ever a page of this dashboard."""
    good = text.startswith("/ui") and "\\" not in text and not any(ord(c) < 33 for c in text)
    return text if good else "/ui"


def wants_fragment(request: Request) -> bool:
    """Does a script ask for a part of the page?"""
    return "x-airi-fragment" in request.headers


class PageRoute(APIRoute):
    """A route whose errors are pages, and whose answers carry the dashboard's headers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with errors and headers seen to."""
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await inner(request)
            except AuthenticationError as error:
                response = _to_sign_in(request, error)
            except AiriError as error:
                response = error_page(error.status, error.message)
            except (RequestValidationError, ValidationError) as error:
                response = error_page(400, _first(error))
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return handle


def _to_sign_in(request: Request, error: AuthenticationError) -> Response:
    if request.method != "GET" or wants_fragment(request):
        return error_page(401, error.message)
    wanted = request.scope["path"]
    if request.url.query:
        wanted += "?" + request.url.query
    return RedirectResponse(f"/ui/sign-in?next={quote(wanted, safe='')}", 303)


def _first(error: RequestValidationError | ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path"))
    return f"{name}: {first['msg']}" if name else str(first["msg"])


def error_page(status: int, message: str) -> HTMLResponse:
    """Return an error in words, with a way back."""
    return render("error.html", status, status=status, message=message, title="That did not work")
