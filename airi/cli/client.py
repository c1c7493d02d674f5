"""Speaking to the running gateway over its public HTTP API."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from airi.cli.runner import NoError
from airi.settings import Settings

API_KEY = "AIRI_API_KEY"
"""The environment variable with a tenant's key for commands that act as a tenant; else ``AIRI_HOME/dev.key``."""
_TIMEOUT = httpx.Timeout(60, connect=5)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    id: str
    name: str
    data: Any


class Client:
    """A gateway and the key to it. Every answer that is not 2xx becomes a :class:`NoError` with its message."""

    def __init__(self, base_url: str, key: str, *, local: bool) -> None:
        verify: bool | ssl.SSLContext = True
        if local:  # this machine's own listener, often with a private certificate
            verify = ssl.create_default_context()
            verify.check_hostname = False
            verify.verify_mode = ssl.CERT_NONE
        self._base = base_url
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            verify=verify if base_url.startswith("https:") else True,
            trust_env=not local,
        )

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the answer's JSON (``None`` when there is no body)."""
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        with self._words():
            response = self._http.request(method, path, json=body, params=asked, headers=dict(headers or {}))
        if not response.is_success:
            raise NoError(_refusal(response), code=_code(response))
        return response.json() if response.content else None

    def text(self, path: str) -> str:
        """Return the answer's text."""
        with self._words():
            response = self._http.get(path)
        if not response.is_success:
            raise NoError(_refusal(response))
        return response.text

    def events(self, path: str, last: str = "") -> Iterator[Event]:
        """Yield server-sent events until the stream ends; ``last`` is the id after which to begin."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        with (
            self._words(),
            self._http.stream(
                "GET", path, headers=headers, timeout=httpx.Timeout(None, connect=5)
            ) as response,
        ):
            if not response.is_success:
                response.read()
                raise NoError(_refusal(response))
            yield from _events(response.iter_lines())

    def _words(self) -> _Words:
        return _Words(self._base)


class _Words:
    """Turns a failure of the network into a sentence."""

    def __init__(self, base: str) -> None:
        self._base = base

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise NoError(
                f"no gateway answers at {self._base}: start one with `airi up`, or set AIRI_GATEWAY_URL"
            ) from error
        if isinstance(error, httpx.HTTPError):
            raise NoError(f"the gateway at {self._base} broke off: {type(error).__name__}") from error


def admin_client() -> Client:
    """Return a client that acts as the administrator (AIRI_ADMIN_KEY or ``AIRI_HOME/admin.key``)."""
    settings = Settings.from_environment()
    if settings.admin_key is not None:
        key = settings.admin_key.reveal()
    else:
        key = _read_key(settings.home / "admin.key", "AIRI_ADMIN_KEY")
    return _client(settings, key)


def tenant_client() -> Client:
    """Return a client that acts as a tenant (AIRI_API_KEY or ``AIRI_HOME/dev.key``)."""
    settings = Settings.from_environment()
    return _client(settings, os.environ.get(API_KEY) or _read_key(settings.home / "dev.key", API_KEY))


def _client(settings: Settings, key: str) -> Client:
    return Client(settings.effective_gateway_url, key, local=settings.gateway_url is None)


def _read_key(path: Path, variable: str) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NoError(
            f"no key: {path} cannot be read; set {variable}, or AIRI_HOME to the gateway's"
        ) from error


def _refusal(response: httpx.Response) -> str:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:500] or response.reason_phrase
    return f"{message} ({response.status_code})"


def _code(response: httpx.Response) -> str | None:
    """What the gateway calls the refusal, for commands that know what to do about some."""
    try:
        code = response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """Parse server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name:
                fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        if "data" in fields:
            text = "\n".join(fields["data"])
            try:
                data: Any = json.loads(text)
            except ValueError:
                data = text
            yield Event(fields.get("id", [""])[-1], fields.get("event", ["message"])[-1], data)
        fields = {}
