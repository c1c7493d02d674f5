"""``airi validate``, ``airi diff``, ``airi apply``, ``airi rollback``: configuration files and their versions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airi.cli.client import admin_client
from airi.cli.output import line, show
from airi.cli.runner import NoError, Parser, UsageError, command
from airi.settings import Settings

if TYPE_CHECKING:
    from airi.config.document import ConfigDocument
    from airi.config.loader import LoadedResource
    from airi.config.validation import Findings

Json = dict[str, Any]
_DISCOVERY = "file adopted.yaml"
"""The author of what a start found on its machine."""


def _validate(arguments: argparse.Namespace) -> int:
    from airi.config.loader import load_files

    if arguments.schema:
        return _print_schema()
    if not arguments.files:
        raise UsageError("give files or folders to check, or --schema")
    loaded = load_files(arguments.files)
    findings = check_files(loaded)
    data = {
        "valid": not findings.problems,
        "resources": [f"{item.resource.kind}/{item.resource.metadata.name}" for item in loaded],
        "problems": findings.problems,
        "warnings": findings.warnings,
    }

    def text() -> str:
        lines = [*findings.problems, *(f"warning: {warning}" for warning in findings.warnings)]
        verdict = f"{len(findings.problems)} problems" if findings.problems else "valid"
        return "\n".join([*lines, f"{len(loaded)} resources: {verdict}"])

    show(arguments, data, text)
    return int(bool(findings.problems))


def _print_schema() -> int:
    from airi.config.reference import json_schema

    line(json.dumps(json_schema(), indent=2))
    return 0


def check_files(loaded: Sequence[LoadedResource]) -> Findings:
    """Check files as the control plane would, among what AIRI_HOME has adopted (or, before a first start, would)."""
    from agents.advice import functions_here, unknown_tools
    from agents.checking import problems as workflow_problems
    from airi.config.validation import check
    from policies.documents import policy_problems

    document = _adopted()
    resources = {**document.resources, **{item.key: item.resource for item in loaded}}
    return check(
        type(document)(resources),
        places={item.key: item.where for item in loaded},
        validators={"Policy": policy_problems, "Workflow": workflow_problems},
        advisers={"Workflow": partial(unknown_tools, functions=cache(functions_here))},
        changed=[item.key for item in loaded],
    )


def _adopted() -> ConfigDocument:
    from airi.config.document import ConfigDocument
    from airi.config.loader import load_data, load_files
    from airi.up.adopt import adopt

    path = Settings.from_environment().home / "adopted.yaml"
    found = load_files([path]) if path.exists() else load_data(adopt([1], [], {}).resources)
    return ConfigDocument({item.key: item.resource for item in found})


def _validate_parser() -> Parser:
    parser = command(
        "validate",
        "Check configuration files without a gateway: form, references, policies, workflows. Every fault is named with "
        "file, line and key.",
        "airi validate airi.yaml policies/",
        _validate,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="files, or folders of YAML files")
    parser.add_argument(
        "--schema", action="store_true", help="print the JSON Schema that editors use, and stop"
    )
    return parser


def _send(arguments: argparse.Namespace, *, dry_run: bool) -> Json:
    from airi.config.loader import load_files
    from airi.config.state import body_of

    loaded = load_files(arguments.files)
    resources = [body_of(item.resource) for item in loaded]
    query = {
        "prune": str(arguments.prune).lower(),
        "take_over": str(arguments.take_over).lower(),
        "dry_run": str(dry_run).lower(),
    }
    try:
        answer: Json = admin_client().call("POST", "/admin/v1/apply", {"resources": resources}, query=query)
    except NoError as error:
        raise NoError(with_places(str(error), loaded)) from error
    answer["warnings"] = [with_places(warning, loaded) for warning in answer["warnings"]]
    return answer


def with_places(message: str, loaded: Sequence[LoadedResource]) -> str:
    """Put file and line before each line of the control plane's that names a resource: it has not seen the files."""
    lines = []
    for text in message.split("\n"):
        name, _, rest = text.partition(": ")
        kind, _, own = name.partition("/")
        found = next((item for item in loaded if item.key == (kind, own)), None)
        if found is None:
            lines.append(text)
            continue
        key = rest.partition(": ")[0]
        path = [int(part) if part.isdigit() else part for part in key.split(".")]
        place = found.where(*path)
        lines.append(f"{place.partition(f': {name}')[0]}: {text}")
    return "\n".join(lines)


def _changes(result: Json) -> str:
    lines = [f"+ {name}" for name in result["created"]]
    lines += [f"~ {name}" for name in result["changed"]]
    lines += [f"- {name}" for name in result["removed"]]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return "\n".join(lines)


def _diff(arguments: argparse.Namespace) -> int:
    result = _send(arguments, dry_run=True)

    def text() -> str:
        return "\n".join(item["text"].rstrip() for item in result["diff"]) or "no difference"

    show(arguments, result, text)
    return int(bool(result["diff"]))


def _apply(arguments: argparse.Namespace) -> int:
    result = _send(arguments, dry_run=False)

    def text() -> str:
        return "\n".join(filter(None, [_changes(result), f"version {result['version']} serves"]))

    show(arguments, result, text)
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    client = admin_client()
    version = arguments.version
    if version is None:
        newest = client.call("GET", "/admin/v1/snapshots?limit=50")["data"]
        # What a start found on the machine is nobody's decision, and no rollback takes it back.
        decided = next((at for at, each in enumerate(newest) if each["author"] != _DISCOVERY), len(newest))
        if len(newest) < decided + 2:
            raise NoError("there is no earlier version")
        version = newest[decided + 1]["version"]
    result = client.call("POST", f"/admin/v1/snapshots/{version}/rollback", {"comment": arguments.comment})

    def text() -> str:
        serves = f"version {result['version']} serves, with the content of version {version}"
        return "\n".join(filter(None, [_changes(result), serves]))

    show(arguments, result, text)
    return 0


def _rollback_parser() -> Parser:
    parser = command(
        "rollback",
        "Make a new version with the content of an earlier one: of VERSION, or of the one before the one that serves. "
        "Keys are not part of versions, so no revoked key comes back.",
        "airi rollback 7 --comment 'the new fallback is too slow'",
        _rollback,
    )
    parser.add_argument("version", nargs="?", type=int, metavar="VERSION", help="default: the one before")
    parser.add_argument("--comment", default="", help="why; stands in the history")
    return parser


def _bundle_parser(name: str, summary: str, example: str, run: Any) -> Parser:
    parser = command(name, summary, example, run)
    parser.add_argument(
        "-f", "--file", dest="files", action="append", required=True, type=Path, metavar="FILE",
        help="a file, or a folder of YAML files; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--prune", action="store_true", help="remove what files managed before and these lack"
    )
    parser.add_argument("--take-over", action="store_true", help="manage by files what the API manages now")
    return parser


def _diff_parser() -> Parser:
    return _bundle_parser(
        "diff",
        "Show what `airi apply` with the same arguments would change on the running gateway. Exit code 1 when "
        "something would.",
        "airi diff -f airi.yaml --prune",
        _diff,
    )


def _apply_parser() -> Parser:
    return _bundle_parser(
        "apply",
        "Apply files to the running gateway as one version; a fault anywhere refuses the whole.",
        "airi apply -f airi.yaml -f policies/",
        _apply,
    )


PARSERS = {
    "validate": _validate_parser,
    "diff": _diff_parser,
    "apply": _apply_parser,
    "rollback": _rollback_parser,
}
