"""What is different for a call that may go to its target in the form of its own API, at each stage of its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from airi.errors import InvalidRequestError
from gateway.dialects.responses.answer import chat_usage, finish_reason
from gateway.dialects.responses.native import NativeAnswer
from gateway.exchange import Exchange
from gateway.usage import estimated, from_openai
from routing.native import NativeForm
from routing.registry import Route

if TYPE_CHECKING:
    from gateway.dialects.responses.native import NativeCall
    from routing.answer import Answer

_encode = msgspec.json.Encoder().encode


def native_of(exchange: Exchange) -> NativeCall | None:
    """Return the call's native form, where a target of its model speaks it."""
    return exchange.translation.native if exchange.translation is not None else None


def hosted_tools(exchange: Exchange) -> list[str]:
    """Return the types of the tools that the provider would run."""
    native = native_of(exchange)
    return native.hosted if native is not None else []


def bound(exchange: Exchange) -> None:
    """Take the native form into what the call may cost at most; refuse what a hard budget cannot answer for."""
    native, plan = native_of(exchange), exchange.plan
    assert plan is not None
    if native is None:
        return
    exchange.input_bytes = max(exchange.input_bytes, len(_encode(native.body)))
    field = native.unbounded
    if field is not None and plan.scopes.has_hard:
        raise InvalidRequestError(
            f"'{field}' lets the provider use more than a hard budget can answer for; use a key without one.",
            param=field, code="unsupported",
        )  # fmt: skip


def way(
    exchange: Exchange, route: Route, overrides: Mapping[str, Any] | None
) -> tuple[Route, NativeForm | None]:
    """Return the targets that can take the call, and its form for those that speak its own API."""
    native = native_of(exchange)
    if native is None:
        return route, None
    if native.only is not None:
        narrowed = route.of_responses_alone()
        if narrowed is None:  # a policy has sent it elsewhere
            raise native.only
        route = narrowed
    granted = (overrides or {}).get("max_tokens")
    changed = {} if granted is None else {"max_output_tokens": granted}
    return route, NativeForm(native.body, changed)


def arrived(exchange: Exchange, answer: Answer) -> NativeAnswer | None:
    """Return the way back, where the target that answered was sent the native form; it is the call's translation then."""
    translation, call = exchange.translation, exchange.call
    if translation is None or translation.native is None or call is None or call.native is None:
        return None
    if not answer.responses:
        return None
    back = translation.native.answer
    exchange.translation = back
    return back


def look_at(exchange: Exchange, answer: dict[str, Any], size: int) -> None:
    """Read a whole native answer's usage and why it ended."""
    usage = chat_usage(answer.get("usage"))
    exchange.usage = (
        from_openai(usage) if usage is not None else estimated(exchange.input_estimate, size // 4)
    )
    exchange.finish_reasons = [finish_reason(answer)]
    if answer.get("status") == "failed":
        exchange.error_type, exchange.error_code = "upstream_error", "upstream_response_failed"
