"""Upstreams that do not speak OpenAI's dialect, translated by the litellm SDK.

litellm is imported in a thread when the first such upstream is configured: it costs seconds and 190 MB. Only allow-listed
parameters reach it, and no credential; retries, time-outs, connections and errors stay ours.
"""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from airi.http.client import HttpPool
from airi.http.errors import ResponseTooLarge, Truncated
from routing.adapters.litellm_sdk import load
from routing.adapters.openai import FORWARDED, client_options
from routing.adapters.refusals import judge
from routing.adapters.translation import chunk_events, parameters, whole_body
from routing.adapters.transport import STAND_IN, Exchange, PooledTransport, current
from routing.call import Call, Header
from routing.errors import ContractError
from routing.specs import Endpoint, PlaceSpec

_JSON = [(b"content-type", b"application/json")]
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
_END_MARKS = {"gemini": (b'"finishReason"', b'"blockReason"')}
"""What stands in a stream that really ended, where litellm invents the end of one that did not. Never in a text: quotes in
texts are escaped."""


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
        self._transport = PooledTransport(self._pool, spec.api_key, spec.aws)
        self._client: Any = None

    async def send(
        self, call: Call, model: str, drop: tuple[str, ...], total_ms: int
    ) -> TranslatedWhole | TranslatedStream:
        """Send the call; see :class:`routing.adapters.base.Upstream`. Refused parameters are a 400 of ours."""
        if call.path not in ("/chat/completions", "/embeddings"):
            raise ContractError(f"The model '{call.route.alias}' does not serve {call.path}.", param="model")
        litellm = await asyncio.shield(self._loading)
        arguments = parameters(call, model, drop)
        arguments.update(self._access(call.path, model), drop_params=call.route.drop_params)
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
            refused = judge(error, exchange, call.route.alias)
            return TranslatedWhole(refused.status, _JSON + refused.headers, refused.body)
        finally:
            current.reset(token)

    def close(self) -> None:
        """Close idle connections now and the others when their exchange is over."""
        self._pool.close()

    def _access(self, path: str, model: str) -> dict[str, Any]:
        """Return where and as whom to call: from the configuration, never from the request."""
        if self._client is None:
            handler = importlib.import_module("litellm.llms.custom_httpx.http_handler")
            self._client = handler.AsyncHTTPHandler(transport=self._transport, follow_redirects=False)
        access: dict[str, Any] = {
            "model": f"{self._provider}/{model}",
            "api_base": self._base,
            "api_key": STAND_IN,
            "client": self._client,
            "num_retries": 0,
            "max_retries": 0,
            # Ours run below, in the transport; litellm's must never be first.
            "timeout": self._spec.timeouts.total / 1_000 + 60,
        }
        if path == "/chat/completions":
            # Tools would otherwise pull in litellm's proxy (its MCP gateway), which must never be imported.
            access.update(_skip_mcp_handler=True, _skip_responses_api_bridge=True)
        if self._provider == "bedrock":
            access["aws_bedrock_runtime_endpoint"] = access.pop("api_base")
            access["aws_region_name"] = self._spec.aws.region if self._spec.aws else "us-east-1"
            if path == "/chat/completions" and ("/" not in model or model.startswith("arn:")):
                # One form for all models; litellm knows only some of them to have it.
                access["model"] = f"bedrock/converse/{model}"
        return access

    def _exchange(self, call: Call, total_ms: int) -> Exchange:
        trace = tuple((name, value) for name, value in call.headers if name in FORWARDED)
        timeouts = self._spec.timeouts
        return Exchange(
            self._transport,
            (*self._spec.headers, *trace),
            timeouts.first_byte,
            timeouts.idle,
            total_ms,
            end_marks=_END_MARKS.get(self._provider, ()),
        )


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
        self._called = False
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
        for choice in chunk.get("choices") or ():
            self._called = self._called or bool((choice.get("delta") or {}).get("tool_calls"))
            if choice.get("finish_reason") == "tool_calls" and not self._called:
                # A schema that litellm made a tool of: the caller has none to call.
                choice["finish_reason"] = "stop"
        if "usage" in chunk and not any(getattr(seen, "usage", None) for seen in self._stream.chunks):
            # litellm's own count of an answer that came without one: what is estimated must be marked as such.
            del chunk["usage"]
        return chunk

    def _check_ended(self) -> None:
        """A stream that merely stopped has no finish reason of its own; litellm would invent one."""
        stream = self._stream
        reason = getattr(stream, "received_finish_reason", None) or getattr(
            stream, "intermittent_finish_reason", None
        )
        if self._exchange.error is not None or reason is None or not self._exchange.end_seen:
            self.close()
            raise self._exchange.error or Truncated("The upstream's stream ended before its end.")


def _wants_usage(call: Call) -> bool:
    options = (call.overrides or {}).get("stream_options", call.payload.body.get("stream_options"))
    return isinstance(options, dict) and options.get("include_usage") is True
