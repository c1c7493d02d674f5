"""``airi workflow run|list``."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from airi.cli.client import Client, admin_client, tenant_client
from airi.cli.output import line, show, table
from airi.cli.runner import NoError, Parser, command, group

Json = dict[str, Any]
_APPLY = "/admin/v1/apply"


def _run(arguments: argparse.Namespace) -> int:
    from airi.cli.runs import finish, watch

    inputs = dict(arguments.input)
    name = _publish(Path(arguments.workflow)) if Path(arguments.workflow).is_file() else arguments.workflow
    client = tenant_client()
    headers = {"Idempotency-Key": arguments.idempotency_key} if arguments.idempotency_key else {}
    run: Json = client.call(
        "POST", f"/v1/workflows/{quote(name, safe='')}/runs", {"inputs": inputs}, headers=headers
    )
    if arguments.detach:
        show(arguments, run, lambda: f"{run['id']}: follow it with `airi run watch {run['id']}`")
        return 0
    quiet = arguments.output == "json"
    if not quiet:
        line(f"{run['id']} (Ctrl-C stops watching, not the run)")
    return finish(arguments, watch(client, run["id"], quiet=quiet))


def _publish(path: Path) -> str:
    """Put what a file holds into the running gateway and return the name of its one workflow."""
    from airi.cli.configuration import with_places
    from airi.config.loader import load_files
    from airi.config.state import body_of

    loaded = load_files([path])
    names = [item.resource.metadata.name for item in loaded if item.resource.kind == "Workflow"]
    if len(names) != 1:
        raise NoError(
            f"{path} holds {len(names)} workflows; apply it with `airi apply -f`, then run one by its name"
        )
    bundle = {"resources": [body_of(item.resource) for item in loaded]}
    client = admin_client()
    try:
        client.call("POST", _APPLY, bundle, query={"manager": "api"})
    except NoError as error:
        if error.code != "managed_elsewhere":
            raise NoError(with_places(str(error), loaded)) from error
        _require_served(client, bundle, path, names[0])
    return names[0]


def _require_served(client: Client, bundle: Json, path: Path, name: str) -> None:
    """What files manage is not changed in passing: it is run when it is what the file says."""
    query = {"manager": "file", "take_over": "true", "dry_run": "true"}
    difference = client.call("POST", _APPLY, bundle, query=query)["diff"]
    if difference:
        names = " and ".join(f"{item['kind']} {item['name']!r}" for item in difference)
        file = shlex.quote(str(path))
        raise NoError(
            f"{path} differs from the {names} that serves, and configuration files manage what serves: put it there "
            f"with `airi apply -f {file}` (`airi diff -f {file}` shows the difference), or run what serves with "
            f"`airi workflow run {name}`"
        )


def _input(text: str) -> tuple[str, Any]:
    """Parse ``name=value``; a value that is JSON is taken as such, anything else is text; ``@FILE`` is its content."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text()
        except OSError as error:
            raise argparse.ArgumentTypeError(f"{value[1:]} cannot be read: {error.strerror}") from error
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _run_parser() -> Parser:
    parser = command(
        "workflow run",
        "Start a workflow and watch it to its end. A file is put into the running gateway first; what configuration "
        "files manage there must be the same. Exit code 0 when the run completed.",
        "airi workflow run examples/workflows/research.yaml -i topic='solar sails'",
        _run,
    )
    parser.add_argument("workflow", metavar="FILE|NAME", help="a file with one workflow, or the name of one")
    parser.add_argument(
        "-i", "--input", action="append", type=_input, default=[], metavar="NAME=VALUE",
        help="an input: text, JSON, or @FILE; again for more",
    )  # fmt: skip
    parser.add_argument("--detach", action="store_true", help="print the run's id and do not wait")
    parser.add_argument("--idempotency-key", help="the same key and inputs give the same run")
    return parser


def _list(arguments: argparse.Namespace) -> int:
    workflows = tenant_client().call("GET", "/v1/workflows")["data"]
    rows = [
        (item["name"], ", ".join(_wanted(item.get("inputs") or {})), item.get("description"))
        for item in workflows
    ]
    show(
        arguments, workflows, lambda: table(("workflow", "inputs", "description"), rows, empty="no workflows")
    )
    return 0


def _wanted(schema: Json) -> list[str]:
    required = set(schema.get("required", []))
    return [name if name in required else f"[{name}]" for name in schema.get("properties", {})]


def _parser() -> Parser:
    listing = command(
        "workflow list", "List workflows and the inputs they take.", "airi workflow list", _list
    )
    return group("workflow", "Start and list workflows.", [_run_parser(), listing])


PARSERS = {"workflow": _parser}
