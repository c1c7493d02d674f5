"""``airi key create|list|rotate|revoke``."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

from airi.cli.client import admin_client
from airi.cli.output import moment, show, table
from airi.cli.runner import Parser, command, group

Json = dict[str, Any]
_KEYS = "/admin/v1/keys"
_BUDGET = re.compile(r"(?P<usd>\d+(\.\d+)?)/(?P<window>minute|hour|day|week|month|total)(?P<soft>:soft)?")
_MICROS = 1_000_000


def _create(arguments: argparse.Namespace) -> int:
    limits = {
        "requests_per_minute": arguments.requests_per_minute,
        "tokens_per_minute": arguments.tokens_per_minute,
        "concurrent_calls": arguments.concurrent_calls,
    }
    body: Json = {
        "tenant": arguments.tenant,
        "team": arguments.team,
        "user": arguments.user,
        "role": arguments.role,
        "name": arguments.name,
        "models": arguments.model,
        "routes": arguments.route,
        "cidrs": arguments.cidr,
        "limits": {name: value for name, value in limits.items() if value is not None},
        "budgets": arguments.budget,
    }
    if arguments.expires is not None:
        body["expires_at_ms"] = int(time.time() * 1_000) + arguments.expires
    key = admin_client().call("POST", _KEYS, {name: value for name, value in body.items() if value})
    _show_new(arguments, key)
    return 0


def _show_new(arguments: argparse.Namespace, key: Json) -> None:
    show(arguments, key, lambda: f"{key['id']}: the key is shown this once\n{key['key']}")


def _budget(text: str) -> Json:
    """Parse ``10/day`` or ``2.50/month:soft``."""
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("expected dollars/window such as 10/day or 2.50/month:soft")
    mode = "soft" if match["soft"] else "hard"
    return {
        "name": match["window"],
        "usd": round(float(match["usd"]) * _MICROS),
        "window": match["window"],
        "mode": mode,
    }


def duration(text: str) -> int:
    """Parse ``30s``, ``20m``, ``24h``, ``7d`` into milliseconds."""
    from airi.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _create_parser() -> Parser:
    parser = command(
        "key create",
        "Issue a key. It is shown once; AIRI keeps only a digest.",
        "airi key create --tenant acme --team search --model 'fast' --budget 10/day --expires 30d",
        _create,
    )
    parser.add_argument("--tenant", required=True)
    parser.add_argument("--team")
    parser.add_argument("--user", help="the person or program that it is for")
    parser.add_argument("--role", default="developer", help="what it may do (default: developer)")
    parser.add_argument("--name", default="", help="a name for people")
    parser.add_argument(
        "--model", action="append", default=[], help="a model it may call, * matches; again for more"
    )
    parser.add_argument(
        "--route", action="append", default=[], help="a route it may use, such as /v1/embeddings"
    )
    parser.add_argument("--cidr", action="append", default=[], help="a network it may come from")
    parser.add_argument("--expires", type=duration, help="from now: 24h, 30d")
    parser.add_argument("--requests-per-minute", type=int)
    parser.add_argument("--tokens-per-minute", type=int)
    parser.add_argument("--concurrent-calls", type=int)
    parser.add_argument(
        "--budget",
        action="append",
        type=_budget,
        default=[],
        help="dollars/window: 10/day; 5/hour:soft warns",
    )
    return parser


def _list(arguments: argparse.Namespace) -> int:
    client = admin_client()
    keys: list[Json] = []
    while True:
        after = keys[-1]["id"] if keys else ""
        page = client.call("GET", _KEYS, query={"tenant": arguments.tenant, "after": after, "limit": 1_000})
        keys += page["data"]
        if not page["has_more"]:
            break
    shown = [key for key in keys if arguments.revoked or not key.get("revoked")]
    columns = ("id", "tenant", "team", "role", "name", "models", "expires", "state")
    show(arguments, shown, lambda: table(columns, [_row(key) for key in shown], empty="no keys"))
    return 0


def _row(key: Json) -> tuple[Any, ...]:
    state = "revoked" if key.get("revoked") else "rotating" if key.get("older_secrets_until_ms") else ""
    models = " ".join(key.get("models") or ["*"])
    expires = moment(key.get("expires_at_ms"))
    return (
        key["id"],
        key["tenant"],
        key.get("team"),
        key.get("role"),
        key.get("name"),
        models,
        expires,
        state,
    )


def _list_parser() -> Parser:
    parser = command("key list", "List keys.", "airi key list --tenant acme", _list)
    parser.add_argument("--tenant", help="only this tenant's")
    parser.add_argument("--revoked", action="store_true", help="revoked ones too")
    return parser


def _rotate(arguments: argparse.Namespace) -> int:
    body = {"overlap": arguments.overlap}
    _show_new(arguments, admin_client().call("POST", f"{_KEYS}/{arguments.id}/rotate", body))
    return 0


def _rotate_parser() -> Parser:
    parser = command(
        "key rotate",
        "Give a key a new secret; the old one goes on working for a while. Limits and budgets stay with the key.",
        "airi key rotate 0198c1f2a3b4 --overlap 24h",
        _rotate,
    )
    parser.add_argument("id")
    parser.add_argument(
        "--overlap", default="24h", help="how long the old secret works (default: 24h; 0s: not at all)"
    )
    return parser


def _revoke(arguments: argparse.Namespace) -> int:
    client = admin_client()
    revoked = [client.call("POST", f"{_KEYS}/{key_id}/revoke") for key_id in arguments.id]
    show(arguments, revoked, lambda: "\n".join(f"{key['id']} is revoked for good" for key in revoked))
    return 0


def _revoke_parser() -> Parser:
    parser = command(
        "key revoke",
        "Revoke keys for good; every gateway refuses them within 5 s.",
        "airi key revoke 0198c1f2a3b4",
        _revoke,
    )
    parser.add_argument("id", nargs="+")
    return parser


def _parser() -> Parser:
    parts = [_create_parser(), _list_parser(), _rotate_parser(), _revoke_parser()]
    return group("key", "Create, list, rotate and revoke keys.", parts)


PARSERS = {"key": _parser}
