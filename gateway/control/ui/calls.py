"""The list of calls and the page of one trace."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from gateway.control.auth import Principal, host_of, require
from gateway.control.reading import CallsQuery, Records, call_json
from gateway.control.services import Services
from gateway.control.ui.chart import histogram
from gateway.control.ui.explain import timeline
from gateway.control.ui.frame import Frame
from gateway.control.ui.pages import PageRoute, link, render, wants_fragment
from gateway.control.ui.waterfall import WIDTH, of_call, of_trace
from observability.errors import WriterUnavailableError
from observability.record import CallRecord
from observability.store import StoredCall, Trace

_PATH = "/ui/calls"
RANGES = (("15m", "15 min"), ("1h", "1 hour"), ("24h", "24 hours"), ("7d", "7 days"), ("all", "All"))
OUTCOMES = (
    ("", "Any outcome"),
    ("ok", "Succeeded"),
    ("error", "Failed"),
    ("refused", "Refused"),
    ("cancelled", "Caller left"),
)
_CHIPS = {
    "tenant": "tenant", "model": "model", "target": "target", "outcome": "outcome", "status": "status", "team": "team",
    "key": "key", "run": "run", "session": "session", "policy": "policy", "simulated": "simulated",
    "min_cost_usd": "cost ≥ $", "min_duration_ms": "ms ≥", "until": "until", "q": "text",
}  # fmt: skip
_MOST_LIVE_SHOWN = 12


def router(services: Services, records: Records, frame: Frame) -> APIRouter:
    """Return the routes of calls and traces."""
    routes = APIRouter(route_class=PageRoute, include_in_schema=False)
    reader = Depends(require(services, "records.read"))

    @routes.get(_PATH)
    async def calls(request: Request, who: Principal = reader) -> Response:
        given = {name: value.strip() for name, value in request.query_params.items() if value.strip()}
        given.setdefault("since", "24h")
        query = CallsQuery.model_validate(given)
        context = await _list_context(records, who, query, given)
        if wants_fragment(request):
            return render("calls_list.html", who=who, now=time.time(), **context)
        page = await frame.context(request, who, "calls", "Calls")
        return render("calls.html", models=await records.models(who), **page, **context)

    @routes.get("/ui/traces/{trace_id}")
    async def trace(request: Request, trace_id: str, span: str = "", who: Principal = reader) -> Response:
        found = await records.trace(who, trace_id)
        context = await _trace_context(records, who, trace_id, found, span)
        page = await frame.context(request, who, "calls", "Trace")
        return render("trace.html", **page, **context, curl_origin=_origin(services, request))

    return routes


async def _list_context(
    records: Records, who: Principal, query: CallsQuery, given: dict[str, str]
) -> dict[str, Any]:
    page, bars, live = await asyncio.gather(
        records.calls(who, query), records.histogram(who, query), _live(records, who, query)
    )
    first_page = not query.cursor
    shown = {name: value for name, value in given.items() if name not in ("cursor", "limit")}
    return {
        "page": page,
        "chart": histogram(bars),
        "live": live[:_MOST_LIVE_SHOWN] if first_page else [],
        "live_more": max(0, len(live) - _MOST_LIVE_SHOWN) if first_page else 0,
        "first_page": first_page,
        "given": {**dict.fromkeys(CallsQuery.model_fields, ""), **shown},
        "chips": [(name, text, given[name], link(_PATH, shown, **{name: ""})) for name, text in _CHIPS.items() if name in given],
        "next_href": link(_PATH, shown, cursor=page.next_cursor) if page.next_cursor else "",
        "first_href": link(_PATH, shown),
        "ranges": [(text, link(_PATH, shown, since=value, until=""), value == given["since"]) for value, text in RANGES],
        "outcomes": OUTCOMES,
        "narrow": lambda since, until: link(_PATH, shown, since=since, until=until),
        "slowest_us": max((call.duration_us for call in page.data), default=1) or 1,
    }  # fmt: skip


async def _live(records: Records, who: Principal, query: CallsQuery) -> list[dict[str, Any]]:
    """Return the calls in flight that the filters let through, as far as is known of them yet."""
    if query.outcome or query.status or query.policy or query.min_cost_usd or query.until:
        return []
    try:
        running = await records.live(who, query.tenant)
    except WriterUnavailableError:
        return []  # the footer says that the writer is away; the list of what has ended is still worth showing
    wanted = {
        "model": query.model,
        "key_id": query.key,
        "team": query.team,
        "run_id": query.run,
        "session": query.session,
    }
    return [
        call for call in running if all(not value or call[name] == value for name, value in wanted.items())
    ]


async def _trace_context(
    records: Records, who: Principal, trace_id: str, found: Trace, span: str
) -> dict[str, Any]:
    chosen = _chosen(found, span)
    several = len(found.calls) + len(found.spans) > 1
    rows, left_out = of_trace(found) if several else ([], 0)
    context: dict[str, Any] = {
        "trace_id": trace_id,
        "found": found,
        "several": several,
        "trace_rows": rows,
        "left_out": left_out,
        "bar_width": WIDTH,
        "call": None,
    }
    if chosen is None:
        return context
    call = chosen.record
    content = await records.content(who, trace_id, call.span_id) if chosen.has_content else None
    context |= {
        "call": call,
        "rows": of_call(call),
        "passages": timeline(call),
        "content": None
        if content is None
        else {name: _pretty(value) for name, value in content.items() if value is not None},
        "curl_body": _curl_body(call, content),
        "as_json": json.dumps(call_json(chosen), indent=2, ensure_ascii=False),
    }
    return context


def _chosen(found: Trace, span: str) -> StoredCall | None:
    for call in found.calls:
        if call.record.span_id == span:
            return call
    return found.calls[0] if found.calls else None


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _curl_body(call: CallRecord, content: dict[str, Any] | None) -> str:
    """Return a body that asks the same again: as it was kept, else its shape with a message to fill in."""
    if content is not None and isinstance(content.get("request"), dict):
        return json.dumps(content["request"], ensure_ascii=False)
    body: dict[str, Any] = {"model": call.model}
    if call.operation == "embeddings":
        body["input"] = "…"
    else:
        body["messages"] = [{"role": "user", "content": "…"}]
        if call.max_tokens:
            body["max_tokens"] = call.max_tokens
        if call.temperature is not None:
            body["temperature"] = call.temperature
        if call.stream:
            body["stream"] = True
    return json.dumps(body, ensure_ascii=False)


def _origin(services: Services, request: Request) -> str:
    scheme = "https" if services.settings.tls_certificate is not None else request.url.scheme
    return f"{scheme}://{host_of(request) or '127.0.0.1:4000'}"
