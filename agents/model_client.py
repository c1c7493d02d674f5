"""Model calls: always through the gateway's door, with a run token and the effect's key as idempotency key."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from agents import faults
from agents.budgets import Grant
from agents.effects import Call, GrantTooSmall, Outcome
from agents.errors import StepFailed
from agents.leases import Claim
from agents.tools.http import retry_after_ms
from airi.clock import unix_ms
from airi.keyring import KeyRing
from airi.settings import Settings
from airi.tokens import RunClaims, mint

COST_HEADER = "x-airi-cost-usd-micros"
RESPONSE_LIMIT = 16 * 1024 * 1024
_TOKEN_LIFE_MS = 120_000
_CONNECTIONS = 512
_CONNECT_S = 5
_BUDGET_CODE = "run_budget_exceeded"
_IN_PROGRESS = "idempotency_in_progress"
_IN_PROGRESS_PAUSE_MS = 500
_AIRI_AWAY = ("budgets_rebuilding", "admission_unavailable", "service_unavailable", "overloaded")
_AWAY_S = 60.0
"""How long a call waits for a gateway that restarts, or that has lost its Redis, before its step's attempt fails."""
_AWAY_PAUSE_S = 0.2
_AWAY_PAUSE_MAX_S = 3.0
_POLICY_TYPES = ("permission_error", "policy_violation", "policy_error")


@dataclass(frozen=True, slots=True)
class Caller:
    """In whose name a call is made and what it belongs to."""

    claim: Claim
    span_id: str


class ModelClient:
    """One pool of connections to the gateway, on the loop that it is used on."""

    def __init__(self, settings: Settings, ring: KeyRing) -> None:
        self._url = settings.effective_gateway_url.rstrip("/") + "/v1/chat/completions"
        self._ring = ring
        self._tls = _tls(settings)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=self._tls, keepalive_timeout=15)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )
        return self._session

    async def complete(self, caller: Caller, call: Call, body: dict[str, Any]) -> Outcome:
        """One chat completion; the step's timeout is the caller's to keep.

        The value is ``{message, finish_reason, usage, model, target, cost_usd_micros}``.
        """
        data = msgspec.json.encode(body)
        away_until = time.monotonic() + _AWAY_S
        pause_s = _AWAY_PAUSE_S
        while True:
            try:
                status, headers, raw = await self._post(self._headers(caller, call), data)
                if status == 200:
                    return _outcome(headers, raw, call.grant)
                error = _error(raw)
                if error.get("code") == _IN_PROGRESS:
                    # A worker before us made this very call and the gateway is still busy with it.
                    await asyncio.sleep((retry_after(headers) or _IN_PROGRESS_PAUSE_MS) / 1000)
                    continue
                if error.get("code") == _BUDGET_CODE:
                    raise GrantTooSmall
                failure = _failure(status, headers, error)
                failure.spent = _cost(headers) or 0
                ours = status == 503 and error.get("code") in _AIRI_AWAY
            except StepFailed as lost:
                if lost.error_class != "connection":
                    raise
                failure, ours = lost, True
            # AIRI itself restarts or waits for Redis: no fault of the step. The same call under the same key is harmless.
            if not ours or time.monotonic() > away_until:
                raise failure
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _AWAY_PAUSE_MAX_S)

    def _headers(self, caller: Caller, call: Call) -> dict[str, str]:
        claim = caller.claim
        claims = RunClaims(
            tenant=claim.tenant, team=claim.team or None, key_id=claim.key_id, run_id=claim.run_id, step=claim.path,
            budget_usd_micros=call.grant.usd_micros, expires_at_ms=unix_ms() + _TOKEN_LIFE_MS,
        )  # fmt: skip
        flags = claim.traceparent.rpartition("-")[2] or "01"
        return {
            "authorization": f"Bearer {mint(self._ring, claims)}", "content-type": "application/json",
            "idempotency-key": call.key, "x-airi-run": claim.run_id, "x-airi-session": claim.run_id,
            "traceparent": f"00-{claim.trace_id}-{caller.span_id}-{flags}",
        }  # fmt: skip

    async def _post(self, headers: dict[str, str], data: bytes) -> tuple[int, aiohttp.ClientResponse, bytes]:
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S)
        try:
            async with self._open().post(
                self._url, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                faults.point("call")
                raw = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    raw += chunk
                    if len(raw) > RESPONSE_LIMIT:
                        answer.close()
                        raise StepFailed("invalid_output", "the model's answer is larger than AIRI takes")
                return answer.status, answer, bytes(raw)
        except (aiohttp.ServerTimeoutError, aiohttp.ConnectionTimeoutError) as error:
            raise StepFailed("connection", "the gateway cannot be reached") from error
        except aiohttp.ClientError as error:
            raise StepFailed(
                "connection", f"the connection to the gateway failed ({type(error).__name__})"
            ) from error


def retry_after(answer: aiohttp.ClientResponse) -> int | None:
    """How long the gateway asks to wait, in milliseconds."""
    return retry_after_ms(answer)


def _tls(settings: Settings) -> ssl.SSLContext | bool:
    """Trust the gateway's own certificate when this installation has one (it may be self-signed)."""
    if settings.tls_certificate is None or settings.gateway_url is not None:
        return True
    context = ssl.create_default_context(cafile=str(settings.tls_certificate))
    context.check_hostname = False  # the certificate itself is pinned; it is issued for the public name
    return context


def _outcome(answer: aiohttp.ClientResponse, raw: bytes, grant: Grant) -> Outcome:
    try:
        body = msgspec.json.decode(raw)
        choice = body["choices"][0]
        message = choice["message"]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise StepFailed("5xx", "the gateway's answer is no chat completion") from error
    usage = body.get("usage") or {}
    tokens = usage.get("total_tokens")
    if isinstance(inner := body.get("airi"), dict):  # a workflow: its own calls' usage is not this answer's
        tokens = inner.get("tokens")
    cost = _cost(answer)
    if cost is None and grant.usd_micros is None:
        cost = 0
    value = {
        "message": {
            key: message[key]
            for key in ("role", "content", "tool_calls", "refusal")
            if message.get(key) is not None
        },
        "finish_reason": choice.get("finish_reason"),
        "usage": usage,
        "model": answer.headers.get("x-airi-model", body.get("model", "")),
        "target": answer.headers.get("x-airi-target", ""),
        "cost_usd_micros": grant.usd_micros if cost is None else cost,
    }
    return Outcome(value, cost, tokens if isinstance(tokens, int) else grant.tokens)


def _cost(answer: aiohttp.ClientResponse) -> int | None:
    """What the gateway says that the call has cost, in micro-dollars."""
    said = answer.headers.get(COST_HEADER, "")
    return int(said) if said.isdigit() else None


def _error(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _failure(status: int, answer: aiohttp.ClientResponse, error: dict[str, Any]) -> StepFailed:
    """The class of an answer that is no success. The message names status and code, never content."""
    code, kind = str(error.get("code") or ""), str(error.get("type") or "")
    said = f"the gateway answered {status}" + (f" ({code[:80]})" if code else "")
    wait = retry_after(answer)
    if status < 500 and ("budget" in code or code == "insufficient_quota"):
        return StepFailed("budget", said)
    if status == 429:
        return StepFailed("rate_limit", said, retry_after_ms=wait)
    if status in (408, 504):
        return StepFailed("timeout", said, retry_after_ms=wait)
    if status >= 500:
        return StepFailed("5xx", said, retry_after_ms=wait)
    if status == 403 or kind in _POLICY_TYPES or "policy" in code:
        return StepFailed("policy", said)
    return StepFailed("4xx", said)
