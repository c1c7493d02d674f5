"""Upstreams that do not speak OpenAI's dialect, translated by the litellm SDK.

litellm is imported in a thread when the first such upstream is configured: it costs seconds and 190 MB. Only allow-listed
parameters reach it; retries, time-outs, connections and errors stay ours.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from typing import Any

import msgspec

from airi.http.client import HttpPool
from airi.http.errors import HttpClientError, ResponseTooLarge, Truncated
from routing.adapters.openai import FORWARDED, client_options
from routing.adapters.translation import chunk_events, parameters, whole_body
from routing.adapters.transport import Exchange, PooledTransport, current
from routing.call import Call, Header
from routing.errors import ContractError, KnownBadVersionError
from routing.specs import Endpoint, PlaceSpec

KNOWN_BAD_VERSIONS = frozenset({"1.82.7", "1.82.8"})
"""Releases that must never be imported: both carried a credential stealer (24 March 2026)."""
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "DISABLE_AIOHTTP_TRANSPORT": "True",
}
"""No network and no ``.env`` file at import."""
_REFUSAL_LIMIT = 500
_JSON = [(b"content-type", b"application/json")]
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


def check_version(version: str) -> None:
    """Raise :class:`KnownBadVersionError` for a release that must not run."""
    if version in KNOWN_BAD_VERSIONS:
        raise KnownBadVersionError(
            f"litellm {version} is a known bad release; install the pinned one.", status=503
        )


@functools.cache
def load() -> Any:
    """Import litellm, quiet and without network, and return it. Takes seconds: call it in a thread."""
    check_version(importlib.metadata.version("litellm"))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Its types make pydantic warn on standard error; nobody here can act on that.
    warnings.filterwarnings("ignore", message=".*ReadOnly. qualifier")
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    litellm.modify_params = False
    litellm.num_retries = 0
    litellm.cache = None
    for hooks in ("callbacks", "input_callback", "success_callback", "failure_callback", "service_callback"):
        setattr(litellm, hooks, [])
    # Equal chunks in a row are ordinary text here, not a fault that ends a stream.
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its logs may hold prompts; what went wrong reaches our record through the attempt.
        logging.getLogger(name).disabled = True
    return litellm


class LitellmUpstream:
    """One provider behind litellm. ``dialect`` is ``litellm:PROVIDER`` in litellm's words (``anthropic``, ``gemini`` …)."""

    def __init__(self, spec: PlaceSpec, endpoint: Endpoint) -> None:
        self._spec = spec
        self._provider = spec.dialect.removeprefix("litellm:")
        self._base = spec.base_url.rstrip("/")
        if self._provider == "anthropic":
            self._base = self._base.removesuffix("/v1")
        self._pool = HttpPool(endpoint.origin, options=client_options(spec))
        self._loading = asyncio.ensure_future(asyncio.to_thread(load))
        self._loading.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        self._client: Any = None

    async def send(
        self, call: Call, model: str, drop: tuple[str, ...], total_ms: int
    ) -> TranslatedWhole | TranslatedStream:
        """Send the call; see :class:`routing.adapters.base.Upstream`. Refused parameters are a 400 of ours."""
        if call.path not in ("/chat/completions", "/embeddings"):
            raise ContractError(f"The model '{call.route.alias}' does not serve {call.path}.", param="model")
        litellm = await asyncio.shield(self._loading)
        arguments = parameters(call, model, drop)
        arguments.update(self._access(model), drop_params=call.route.drop_params)
        exchange = self._exchange(call, total_ms)
        token = current.set(exchange)
        try:
            if call.path == "/embeddings":
                answer = await litellm.aembedding(**arguments)
            elif call.stream:
                arguments.update(stream=True, stream_options={"include_usage": True})
                stream = TranslatedStream(
                    await litellm.acompletion(**arguments), exchange, _wants_usage(call)
                )
                await stream.open()
                return stream
            else:
                answer = await litellm.acompletion(**arguments)
            return TranslatedWhole(200, _JSON, whole_body(answer.model_dump(exclude_none=True)))
        except asyncio.CancelledError:
            exchange.close()
            raise
        except Exception as error:  # noqa: BLE001  # litellm raises a hundred kinds; each becomes one of ours
            exchange.close()
            return _judge(error, exchange)
        finally:
            current.reset(token)

    def close(self) -> None:
        """Close idle connections now and the others when their exchange is over."""
        self._pool.close()

    def _access(self, model: str) -> dict[str, Any]:
        """Return where and as whom to call: from the configuration, never from the request."""
        if self._client is None:
            handler = importlib.import_module("litellm.llms.custom_httpx.http_handler")
            transport = PooledTransport(self._pool)
            self._client = handler.AsyncHTTPHandler(transport=transport, follow_redirects=False)
        access: dict[str, Any] = {
            "model": f"{self._provider}/{model}",
            "api_base": self._base,
            "client": self._client,
            # Tools would otherwise pull in litellm's proxy (its MCP gateway), which must never be imported.
            "_skip_mcp_handler": True,
            "_skip_responses_api_bridge": True,
            "num_retries": 0,
            "max_retries": 0,
            # Ours run below, in the transport; litellm's must never be first.
            "timeout": self._spec.timeouts.total / 1_000 + 60,
        }
        if self._spec.api_key is not None:
            access["api_key"] = self._spec.api_key.reveal()
        if self._provider == "bedrock":
            access["aws_bedrock_runtime_endpoint"] = access.pop("api_base")
            access["aws_region_name"] = self._spec.region or "us-east-1"
        return access

    def _exchange(self, call: Call, total_ms: int) -> Exchange:
        trace = tuple((name, value) for name, value in call.headers if name in FORWARDED)
        timeouts = self._spec.timeouts
        return Exchange((*self._spec.headers, *trace), timeouts.first_byte, timeouts.idle, total_ms)


class TranslatedWhole:
    """A whole answer, or an error, in OpenAI's form."""

    def __init__(self, status: int, headers: list[Header], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of ``name``."""
        return next((value for key, value in self.headers if key == name), None)

    async def read(self, limit: int) -> bytes:
        """Return the body; raise :class:`ResponseTooLarge` past ``limit``."""
        if len(self._body) > limit:
            raise ResponseTooLarge(f"The upstream's answer is larger than {limit} bytes.")
        return self._body

    async def next_block(self) -> bytes | None:
        """Return the body, then ``None``."""
        body, self._body = self._body, b""
        return body or None

    def close(self) -> None:
        """Nothing is open."""


class TranslatedStream:
    """A stream of litellm's as SSE bytes in OpenAI's dialect, ended by ``[DONE]`` when the upstream really ended."""

    def __init__(self, stream: Any, exchange: Exchange, with_usage: bool) -> None:
        self.status = 200
        self.headers: list[Header] = _SSE
        self._stream = stream
        self._exchange = exchange
        self._with_usage = with_usage
        self._done = False
        self._first: dict[str, Any] | None = None

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of ``name``."""
        return next((value for key, value in self.headers if key == name), None)

    async def read(self, limit: int) -> bytes:
        """Return all that is left of the stream."""
        blocks: list[bytes] = []
        size = 0
        while (block := await self.next_block()) is not None:
            blocks.append(block)
            size += len(block)
            if size > limit:
                self.close()
                raise ResponseTooLarge(f"The upstream's answer is larger than {limit} bytes.")
        return b"".join(blocks)

    async def open(self) -> None:
        """Read the first chunk: some providers are only called then, and may answer with an error status."""
        try:
            self._first = await self._next()
        except StopAsyncIteration:
            raise Truncated("The stream ended before it began.") from None

    async def next_block(self) -> bytes | None:
        """Return the events of the next chunk; ``None`` after ``[DONE]``. Raises what :mod:`airi.http.errors` names."""
        while not self._done:
            try:
                chunk, self._first = self._first, None
                if chunk is None:
                    chunk = await self._next()
            except StopAsyncIteration:
                self._done = True
                self._check_ended()
                return b"data: [DONE]\n\n"
            except asyncio.CancelledError:
                self.close()
                raise
            except Exception as error:  # whatever litellm raises here, the stream broke
                self.close()
                raise self._exchange.error or Truncated(
                    f"The stream could not be translated: {type(error).__name__}."
                ) from error
            if any(choice.get("finish_reason") for choice in chunk.get("choices") or ()):
                self._check_ended()
            events = chunk_events(chunk, with_usage=self._with_usage)
            if events:
                return events
        return None

    def close(self) -> None:
        """Cut the upstream at once if it is not over."""
        self._done = True
        self._exchange.close()

    async def _next(self) -> dict[str, Any]:
        """Return the next chunk as plain data. litellm may send its request in here: the exchange must be the current one."""
        token = current.set(self._exchange)
        try:
            chunk: dict[str, Any] = (await anext(self._stream)).model_dump(exclude_none=True)
        finally:
            current.reset(token)
        return chunk

    def _check_ended(self) -> None:
        """A stream that merely stopped has no finish reason of its own; litellm would invent one."""
        stream = self._stream
        reason = getattr(stream, "received_finish_reason", None) or getattr(
            stream, "intermittent_finish_reason", None
        )
        if self._exchange.error is not None or reason is None:
            self.close()
            raise self._exchange.error or Truncated("The upstream's stream ended before its end.")


def _wants_usage(call: Call) -> bool:
    options = (call.overrides or {}).get("stream_options", call.payload.body.get("stream_options"))
    return isinstance(options, dict) and options.get("include_usage") is True


def _judge(error: Exception, exchange: Exchange) -> TranslatedWhole:
    """Turn what litellm raised into the upstream's own answer, or raise what happened below it or before it."""
    if exchange.error is not None:
        raise exchange.error from error
    if isinstance(error, ContractError | HttpClientError):
        raise error
    response = exchange.response
    if response is None:
        # Nothing was sent: the request itself cannot be put into the target's dialect.
        raise _refused(error) from None
    if response.status < 400:
        raise Truncated(f"The answer could not be translated: {type(error).__name__}.") from error
    headers = _JSON + [
        header for header in response.headers if header[0] in (b"retry-after", b"retry-after-ms")
    ]
    return TranslatedWhole(
        response.status, headers, msgspec.json.encode({"error": {"message": _message(error)}})
    )


def _refused(error: Exception) -> ContractError:
    """Return the 400 for a request that litellm would not translate. Only its own validation speaks for itself."""
    if type(error).__name__ in ("UnsupportedParamsError", "BadRequestError"):
        return ContractError(_message(error)[:_REFUSAL_LIMIT])
    return ContractError("The request cannot be translated into the dialect of this model's provider.")


def _message(error: Exception) -> str:
    """Return the upstream's own words out of litellm's wrapping; nothing when they cannot be found."""
    text = str(getattr(error, "message", error))
    start = text.find("{")
    if start < 0:
        return text.split(": ", 1)[-1].split("\n", 1)[0] if text.startswith("litellm.") else ""
    try:
        data = msgspec.json.decode(text[start : text.rfind("}") + 1])
    except msgspec.DecodeError:
        return ""
    inner = data.get("error") if isinstance(data, dict) else None
    words = inner.get("message") if isinstance(inner, dict) else None
    return words if isinstance(words, str) else ""
