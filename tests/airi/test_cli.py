"""The command line: help with an example everywhere, exit codes, errors in words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from airi import __version__
from airi.cli import _COMMANDS, main
from airi.cli.client import Event, _events
from airi.cli.configuration import with_places
from airi.cli.output import moment, span, table, usd
from airi.cli.runner import Parser
from airi.cli.runs import _event
from airi.cli.traces import _decision
from airi.config.loader import load_files

ROOT = Path(__file__).parents[2]


def _parsers(parser: Parser) -> list[Parser]:
    """The parser and those of its subcommands."""
    found = [parser]
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for part in action.choices.values():
                found += _parsers(part)
    return found


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_every_command_has_an_example_and_json(name: str) -> None:
    theme = import_module(f"airi.cli.{_COMMANDS[name][0]}")
    for parser in _parsers(theme.PARSERS[name]()):
        assert parser.epilog is not None, parser.prog
        assert f"airi {name}" in parser.epilog.partition("example:\n")[2], parser.prog
        if parser.get_default("execute") is not None:
            assert "--output" in parser.format_help(), parser.prog


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["nonsense"], 2),
        (["up", "--help"], 0),
        (["up", "--nonsense"], 2),
        (["trace"], 2),
        (["run", "show"], 2),
        (["doctor", "--output", "xml"], 2),
    ],
)
def test_exit_codes_of_usage(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    printed = capsys.readouterr()
    assert printed.out or printed.err


def test_a_misspelled_command_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["modles"]) == 2
    assert "did you mean 'models'?" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_without_a_key_or_a_gateway_the_answer_is_no_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models"]) == 1
    assert "dev.key cannot be read; set AIRI_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("AIRI_API_KEY", "airi_x_y")
    monkeypatch.setenv("AIRI_PORT", "1")
    assert main(["models"]) == 1
    assert "no gateway answers at http://127.0.0.1:1: start one with `airi up`" in capsys.readouterr().err


def test_a_setting_that_cannot_be_understood_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRI_PORT", "four thousand")
    assert main(["doctor"]) == 1
    assert "AIRI_PORT: expected a whole number, got 'four thousand'" in capsys.readouterr().err


def test_the_frame_imports_next_to_nothing() -> None:
    """The shell waits for no library that the command does not need."""
    code = "import sys, airi.cli; airi.cli.main(['--version']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    version, modules = done.stdout.splitlines()
    assert version == f"airi {__version__}"
    assert not {"asyncio", "httpx", "pydantic", "sqlalchemy", "redis", "litellm"} & set(modules.split())


def test_the_supervisor_imports_no_library() -> None:
    """A second start must be ready in 3 s; what the supervisor imports is waited for before anything starts."""
    code = "import sys, airi.up.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"httpx", "pydantic", "sqlalchemy", "redis", "litellm", "yaml", "cryptography", "fastapi"}
    assert not heavy & set(done.stdout.split())


def test_the_control_plane_starts_without_what_it_does_not_need_yet() -> None:
    """Of a second start's 3 s the control plane's imports are the longest part: these come with their first use."""
    code = "import sys, gateway.control.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    later = {
        "celery",
        "kombu",
        "aiohttp",
        "httpx",
        "litellm",
        "wsproto",
        "h11",
        "sqlalchemy.dialects.postgresql",
    }
    assert not later & set(done.stdout.split())


def test_doctor_examines_a_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRI_PORT", "1")  # not to look at a gateway that really runs here
    (home / "admin.key").write_text("airi_admin_x\n")
    (home / "admin.key").chmod(0o644)
    assert main(["doctor", "--output", "json"]) == 1
    findings = {found["check"]: found for found in json.loads(capsys.readouterr().out)}
    assert findings["python"]["state"] == "good"
    assert findings["packages"]["state"] == "good"
    assert findings["sqlite"]["state"] == "good"
    assert "chmod 600" in findings["keys"]["text"]


def test_events_are_parsed_as_the_standard_says() -> None:
    lines = [
        ": a comment",
        "id: 7",
        "event: step",
        'data: {"a": 1}',
        "",
        "data: two",
        "data:  lines",
        "",
        "id: 8",
        "",
    ]
    found = list(_events(iter(lines)))
    assert [(event.id, event.name, event.data) for event in found] == [
        ("7", "step", {"a": 1}),
        ("", "message", "two\n lines"),
    ]


def test_texts() -> None:
    assert table(("a", "bc"), [(1, None), ("long", 2)]) == "A     BC\n1\nlong  2"
    assert table(("a",), []) == "nothing"
    assert usd(1_230_000) == "$1.23"
    assert usd(12) == "$0.000012"
    assert usd(0) == "$0"
    assert moment(0) == "1970-01-01 00:00:00Z"
    assert span(1_500) == "1.5 ms"
    assert span(2_500_000) == "2.50 s"


def test_the_overview_is_quick() -> None:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "airi", "--help"], capture_output=True, check=True, cwd=ROOT)
    assert time.monotonic() - began < 2


def test_a_refusal_of_the_control_plane_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "apiVersion: airi/v1alpha1\nkind: Policy\nmetadata: {name: x}\n"
        "stages: [prompt]\nwhen: call.max_tokns > 3\neffect: deny\n"
    )
    said = "Policy/x: when: 1:1: unknown name\nTenant/other: teams: wrong (400)"
    assert with_places(said, load_files([file])) == (
        f"{file}:5: Policy/x: when: 1:1: unknown name\nTenant/other: teams: wrong (400)"
    )


def test_a_policys_decision_is_shown_with_its_name_and_what_it_found() -> None:
    details = {"policy": "no-mail", "detections": {"pii.email": 2}}
    decision = {"at_us": 5, "stage": "policy", "outcome": "redacted", "reason": "PII", "details": details}
    assert _decision(decision).endswith("redacted   no-mail: PII (found 2 × pii.email)")


def test_a_steps_worker_is_shown_by_host_and_process() -> None:
    data = {"attempt": 1, "worker": "box.a1da658f.effffffc/3469/1516336"}
    event = Event("7", "step.started", {"type": "step.started", "step": "plan", "data": data})
    assert _event(event).endswith("plan                     attempt 1, worker box/3469")
