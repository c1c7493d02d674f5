"""``airi models``: what can be called."""

from __future__ import annotations

import argparse

from airi.cli.client import tenant_client
from airi.cli.output import show, table
from airi.cli.runner import Parser, command


def _run(arguments: argparse.Namespace) -> int:
    models = tenant_client().call("GET", "/v1/models")["data"]
    show(
        arguments,
        models,
        lambda: table(
            ("model", "version", "note"),
            [(m["id"], m.get("version"), "simulated" if m.get("simulated") else "") for m in models],
        ),
    )
    return 0 if models else 1


def _parser() -> Parser:
    return command(
        "models",
        "List the models that the key may call (AIRI_API_KEY, else AIRI_HOME/dev.key).",
        "airi models --output json",
        _run,
    )


PARSERS = {"models": _parser}
