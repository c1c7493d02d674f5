"""Read the call: media type, body, the fields that the gateway needs, and the plan for this key and model."""

from __future__ import annotations

import msgspec

from airi.errors import InvalidRequestError
from gateway.dialects.front import Front
from gateway.errors import UnsupportedMediaTypeError
from gateway.exchange import Exchange
from gateway.operations import Body, decode_body
from gateway.runtime import Runtime
from gateway.stages.native import bound

_MAX_TAGS = 16
_encode = msgspec.json.Encoder().encode


def understand(exchange: Exchange) -> None:
    """Fill the Exchange from the request; raise an error in OpenAI's form that names the field."""
    exchange.input_bytes = len(exchange.request.body)
    _take(exchange, _read_body(exchange))


async def understand_dialect(runtime: Runtime, exchange: Exchange, front: Front) -> None:
    """As :func:`understand`, for a route of another dialect: what follows sees the chat form alone."""
    translation = await front.open(runtime, exchange, _read_body(exchange))
    exchange.translation = translation
    # What a call may cost is bounded by what goes upstream: a dialect may add what its request only refers to.
    exchange.input_bytes = len(_encode(translation.chat))
    _take(exchange, translation.chat)
    bound(exchange)


def _read_body(exchange: Exchange) -> Body:
    request = exchange.request
    media = request.header(b"content-type")
    if media is not None and not media.lower().startswith(b"application/json"):
        raise UnsupportedMediaTypeError("Send the body as 'content-type: application/json'.")
    try:
        return decode_body(request.body)
    except InvalidRequestError:
        coding = request.header(b"content-encoding")
        if coding is None or coding.lower() == b"identity":
            raise
        raise UnsupportedMediaTypeError("Send the body without a 'content-encoding'.") from None


def _take(exchange: Exchange, body: Body) -> None:
    operation = exchange.operation
    operation.check(body)
    exchange.body = body
    exchange.model = body["model"]
    exchange.stream = operation.streams and bool(body.get("stream"))
    _read_headers(exchange)
    key = exchange.key
    assert key is not None
    # Who is bound to a user cannot be another one by saying so: limits for each user would be worth nothing.
    exchange.user = key.user or body.get("user") or ""
    exchange.plan = exchange.snapshot.plan(key, exchange.model)
    exchange.alias = exchange.plan.alias


def _read_headers(exchange: Exchange) -> None:
    request = exchange.request
    session = request.header(b"x-airi-session")
    if session:
        exchange.session = session[:128].decode("latin-1")
    tags = request.header(b"x-airi-tags")
    if tags:
        exchange.tags = [
            tag.strip()[:64] for tag in tags.decode("latin-1").split(",")[:_MAX_TAGS] if tag.strip()
        ]
    key = request.header(b"idempotency-key")
    if key:
        if len(key) > 255:
            raise InvalidRequestError(
                "'idempotency-key' may be at most 255 bytes long.", param="idempotency-key"
            )
        exchange.idempotency_key = key.decode("latin-1")
