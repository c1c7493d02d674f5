"""``airi policy test`` and ``airi policy explain``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from airi.cli.client import admin_client
from airi.cli.output import show
from airi.cli.runner import NoError, Parser, UsageError, command, group

Json = dict[str, Any]


def _test(arguments: argparse.Namespace) -> int:
    import msgspec

    from airi.cli.configuration import check_files
    from airi.config.loader import load_files
    from airi.errors import ConfigError
    from policies.testing import run_tests

    loaded = [item for item in load_files(arguments.files) if item.resource.kind == "Policy"]
    if not loaded:
        raise NoError("there is no policy in these files")
    problems = check_files(loaded).problems
    if problems:
        raise ConfigError(problems)
    results = run_tests(item.resource for item in loaded)
    failed = [result for result in results if not result.passed]
    untested = sorted(
        {item.resource.metadata.name for item in loaded} - {result.policy for result in results}
    )

    def text() -> str:
        lines = []
        for result in results:
            lines.append(f"{'ok ' if result.passed else 'NO '} {result.policy}: {result.test}")
            lines += [f"      {difference}" for difference in result.differences]
        lines += [f"?   {name}: has no tests" for name in untested]
        return "\n".join([*lines, f"{len(results)} tests, {len(failed)} failed"])

    show(arguments, [msgspec.to_builtins(result) for result in results], text)
    return int(bool(failed))


def _test_parser() -> Parser:
    parser = command(
        "policy test",
        "Run the tests that travel inside policies. Needs no gateway.",
        "airi policy test policies/",
        _test,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files, or folders of YAML files")
    return parser


def _explain(arguments: argparse.Namespace) -> int:
    call: Json = {
        "stage": arguments.stage,
        "team": arguments.team,
        "key": arguments.key,
        "user": arguments.user,
    }
    call["tenant"] = arguments.tenant
    call["model"] = {"alias": arguments.model}
    if arguments.body is not None:
        call["body" if arguments.stage == "prompt" else "response"] = _read(arguments.body)
    elif arguments.text is not None:
        call["text"] = arguments.text
    else:
        raise UsageError("give a text, or a request with --body FILE")
    if arguments.files:
        explained = _explain_files(arguments.files, call)
    else:
        explained = admin_client().call("POST", "/admin/v1/policy/explain", call)
    show(arguments, explained, lambda: render(explained))
    return int(explained["decision"]["effect"] == "deny")


def _read(path: Path) -> Json:
    try:
        body = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NoError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(body, dict):
        raise NoError(f"{path} does not hold a JSON object")
    return body


def _explain_files(files: list[Path], call: Json) -> Json:
    from airi.config.document import ConfigDocument
    from airi.config.loader import load_files
    from policies.engine import PolicyEngine
    from policies.explain import explain
    from policies.testing import body_of, facts_of

    document = ConfigDocument({item.key: item.resource for item in load_files(files)})
    engine = PolicyEngine.compile(document)
    return explain(engine, facts_of(call), body_of(call, call["stage"]), stage=call["stage"])


def render(explained: Json) -> str:
    """Return the decision and what each policy said, as text."""
    decision = explained["decision"]
    why = ": ".join(filter(None, (decision["policy"], decision["reason"], decision["message"])))
    lines = [f"{decision['effect']}" + (f" ({why})" if why else "")]
    for policy in explained["policies"]:
        mark = "->" if policy["applied"] else "  "
        lines.append(f"{mark} {policy['policy']}: {policy['why']}")
    lines += [
        f"   found {found['class']} {found['sample']} at {found['where']} (score {found['score']:.2f})"
        for found in explained["detections"]
    ]
    if decision.get("rewritten") is not None:
        lines.append(f"   sent on as {json.dumps(decision['rewritten'], ensure_ascii=False)}")
    return "\n".join(lines)


def _explain_parser() -> Parser:
    parser = command(
        "policy explain",
        "Say what the policies decide on a text and why, without calling anything. Asks the running gateway, or with "
        "-f only the policies in files. Exit code 1 when it would be denied.",
        "airi policy explain --tenant dev --model fast 'my card is 4111 1111 1111 1111'",
        _explain,
    )
    parser.add_argument("text", nargs="?", help="one user message (or the answer, with --stage response)")
    parser.add_argument("--body", type=Path, metavar="FILE", help="a whole request (or answer) as JSON")
    parser.add_argument("--stage", choices=("prompt", "response"), default="prompt")
    parser.add_argument("--tenant", default="dev", help="default: dev")
    parser.add_argument("--team", default="")
    parser.add_argument("--key", default="", help="a key's id")
    parser.add_argument("--user", default="")
    parser.add_argument("--model", default="fast", help="the alias that is called (default: fast)")
    parser.add_argument("-f", "--file", dest="files", action="append", type=Path, metavar="FILE")
    return parser


def _parser() -> Parser:
    parts = [_test_parser(), _explain_parser()]
    return group("policy", "Test policies and explain their decisions.", parts)


PARSERS = {"policy": _parser}
