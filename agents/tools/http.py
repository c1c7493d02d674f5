"""HTTP tools: one request, bounded in size and time, with the effect's key as ``Idempotency-Key``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from agents.errors import AmbiguousEffect, StepFailed, ToolError, ToolRefusedError
from agents.tools.addresses import PublicResolver, refuse_private_literal
from agents.tools.functions import ToolContext
from airi.config.kinds import HttpTool
from airi.secrets import Secret

RESPONSE_LIMIT = 1_000_000
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_CONNECTIONS = 128


class HttpTools:
    """The connections of this process to tools: one pool for public addresses, one that may reach private ones."""

    def __init__(self) -> None:
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    def _session(self, allow_private: bool) -> aiohttp.ClientSession:
        if allow_private not in self._sessions:
            resolver = None if allow_private else PublicResolver()
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, resolver=resolver, use_dns_cache=False)
            self._sessions[allow_private] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._sessions[allow_private]

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    async def call(
        self,
        tool: HttpTool,
        args: Mapping[str, Any],
        context: ToolContext,
        secrets: Mapping[str, Secret],
        *,
        unsafe: bool,
    ) -> Any:
        """Make the request; return the answer's JSON, or its text.

        Raises :class:`ToolError` for a definite no, :class:`StepFailed` for what may be tried again, and, if
        ``unsafe``, :class:`AmbiguousEffect` when nobody knows whether the request was acted upon.
        """
        url, rest = fill(tool.url, args)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ToolRefusedError("the tool's address must be http:// or https://")
        if not tool.allow_private:
            refuse_private_literal(parts.hostname)
        headers = {**tool.headers, **{name: secret.reveal() for name, secret in secrets.items()}}
        headers |= {
            "idempotency-key": context.key,
            "x-airi-run": context.run_id,
            "accept-encoding": "identity",
        }
        in_body = tool.method in ("POST", "PUT", "PATCH")
        if in_body:
            headers.setdefault("content-type", "application/json")
        try:
            async with self._session(tool.allow_private).request(
                tool.method, url, headers=headers, allow_redirects=False,
                data=msgspec.json.encode(rest) if in_body else None,
                params=None if in_body else {key: _plain(value) for key, value in rest.items()},
                timeout=aiohttp.ClientTimeout(total=tool.timeout / 1000),
            ) as answer:  # fmt: skip
                body = await _bounded(answer)
        except ToolError:
            raise
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.__cause__, ToolError):
                raise error.__cause__ from None
            raise StepFailed("connection", "the tool cannot be reached") from error
        except TimeoutError as error:
            raise _unsure(
                unsafe, StepFailed("timeout", f"no answer from the tool within {tool.timeout} ms")
            ) from error
        except aiohttp.ClientError as error:
            raise _unsure(unsafe, StepFailed("connection", "the connection to the tool broke")) from error
        return _judge(answer, body, unsafe)


def fill(url: str, args: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Put arguments into ``{name}`` places (percent-encoded); return the address and the other arguments."""
    rest = dict(args)
    used: set[str] = set()

    def value(match: re.Match[str]) -> str:
        if match[1] not in rest:
            raise ToolRefusedError(f"the tool's address needs the argument {match[1]!r}")
        used.add(match[1])
        return quote(_plain(rest[match[1]]), safe="")

    filled = _PLACEHOLDER.sub(value, url)
    return filled, {key: item for key, item in rest.items() if key not in used}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_chunked(65_536):
        body += chunk
        if len(body) > RESPONSE_LIMIT:
            answer.close()
            raise ToolError(f"the tool's answer is larger than {RESPONSE_LIMIT:,} bytes")
    return bytes(body)


def _unsure(unsafe: bool, failure: StepFailed) -> StepFailed:
    return AmbiguousEffect(f"{failure.message}; the tool may have acted all the same") if unsafe else failure


def _judge(answer: aiohttp.ClientResponse, body: bytes, unsafe: bool) -> Any:
    """What an answer means."""
    status = answer.status
    if status < 300:
        if "json" in answer.headers.get("content-type", ""):
            try:
                return msgspec.json.decode(body) if body else None
            except msgspec.DecodeError as error:
                raise ToolError("the tool's answer is not the JSON that it claims to be") from error
        return body.decode(errors="replace")
    if status < 400:
        raise ToolRefusedError(f"the tool answered with a redirect ({status}); redirects are not followed")
    if status == 429:
        raise StepFailed(
            "rate_limit", "the tool asks to slow down (429)", retry_after_ms=retry_after_ms(answer)
        )
    if status in (408, 504):
        raise _unsure(unsafe, StepFailed("timeout", f"the tool answered {status}"))
    if status >= 500:
        failure = StepFailed("5xx", f"the tool answered {status}", retry_after_ms=retry_after_ms(answer))
        raise _unsure(unsafe, failure)
    raise ToolError(f"the tool refused the call ({status})")


def retry_after_ms(answer: aiohttp.ClientResponse) -> int | None:
    """``Retry-After`` in milliseconds, when it is given in seconds."""
    text = answer.headers.get("retry-after", "")
    try:
        return round(float(text) * 1000) if text else None
    except ValueError:
        return None
