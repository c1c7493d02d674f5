"""``airi trace show``: what happened in a call, and why."""

from __future__ import annotations

import argparse
from typing import Any

from airi.cli.client import admin_client
from airi.cli.output import show, span, usd
from airi.cli.runner import NoError, Parser, command, group

Json = dict[str, Any]


def _show(arguments: argparse.Namespace) -> int:
    client = admin_client()
    trace_id = arguments.trace
    if trace_id is None:
        newest = client.call("GET", "/admin/v1/traces?limit=1")["data"]
        if not newest:
            raise NoError("no call has been recorded yet")
        trace_id = newest[0]["trace_id"]
    trace = client.call("GET", f"/admin/v1/traces/{trace_id}")
    show(arguments, trace, lambda: render(trace))
    return 0


def render(trace: Json) -> str:
    """Return a trace as text: each call with its decisions and attempts in order, then the pieces of its run."""
    blocks = [_call(call) for call in trace["calls"]]
    blocks += ["\n".join(_piece(piece) for piece in trace["spans"])] if trace["spans"] else []
    if trace.get("cut"):
        blocks.append("… there is more than is shown here")
    return "\n\n".join(blocks)


def _call(call: Json) -> str:
    simulated = " (simulated)" if call["simulated"] else ""
    served = " → ".join(filter(None, (call["model"], call["version"], call["target"])))
    tokens = f"{call['input_tokens']} in ({call['cached_tokens']} cached), {call['output_tokens']} out"
    error = f"  {call['error_code']}: {call['error_message']}" if call["error_code"] else ""
    lines = [
        f"{call['trace_id']}  {call['status']}  {span(call['duration_us'])}{error}",
        f"  {served or call['model'] or call['route']}{simulated}",
        f"  tokens {tokens}; cost {usd(call['cost_usd_micros'])} ({call['price_source'] or 'no price'})",
    ]
    lines += [_decision(decision) for decision in call["decisions"]]
    lines += [_attempt(attempt) for attempt in call["attempts"]]
    return "\n".join(lines)


def _decision(decision: Json) -> str:
    details = decision["details"]
    reason = ": ".join(filter(None, (details.get("policy"), decision["reason"])))
    line = f"  {span(decision['at_us']):>10}  {decision['stage']:<16} {decision['outcome']:<10} {reason}"
    found = details.get("detections")
    if isinstance(found, dict) and found:
        line += f" (found {', '.join(f'{count} × {name}' for name, count in found.items())})"
    rejected = details.get("rejected")
    if isinstance(rejected, list):
        line += "".join(f"\n{'':14}not {one}" for one in map(_words, rejected))
    return line.rstrip()


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _attempt(attempt: Json) -> str:
    parts = [f"attempt at {attempt['target']}: {attempt['outcome']}"]
    parts += [f"status {attempt['status']}"] if attempt["status"] else []
    parts += [f"first byte after {span(attempt['first_byte_us'])}"] if attempt["first_byte_us"] else []
    parts += [attempt["reason"]] if attempt["reason"] else []
    return f"  {span(attempt['at_us']):>10}  {'; '.join(parts)}"


def _piece(piece: Json) -> str:
    what = f"{piece['kind']} {piece['step'] or piece['name']}"
    return f"  {span(piece['duration_us']):>10}  {what:<40} {piece['state']} {piece['error']}".rstrip()


def _parser() -> Parser:
    show_one = command(
        "trace show",
        "Show one call (or all of a trace): where it went, what each stage decided and why, what it cost. The id "
        "stands in every answer's header x-airi-trace-id.",
        "airi trace show 0198c1f2a3b44c5d8e6f708192a3b4c5",
        _show,
    )
    show_one.add_argument("trace", nargs="?", help="the trace id, 32 hex digits (default: the newest call's)")
    return group("trace", "What happened in a call, and why.", [show_one])


PARSERS = {"trace": _parser}
