"""Warnings of tools that nobody has: with file, line and the name that was meant, and none where it cannot be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.advice import unknown_tools
from airi.cli.configuration import check_files
from airi.config.document import ConfigDocument
from airi.config.loader import load_text
from airi.config.validation import Findings, check

ROOT = Path(__file__).resolve().parents[2]
HEAD = "apiVersion: airi/v1alpha1\n"
TEXT = f"""\
{HEAD}kind: Tool
metadata: {{name: crm.search}}
http: {{url: "https://crm.example.com/search"}}
---
{HEAD}kind: Workflow
metadata: {{name: w}}
steps:
  - {{id: a, call: tool, with: {{tool: crm.serach}}}}
  - id: b
    call: agent
    with:
      model: workflow/w
      input: x
      tools:
        - crm.search
        - crm.nota
        - crm.note
"""
WARNINGS = [
    "f:10: Workflow/w: steps.0.with.tool: fits no Tool and no function so far; did you mean 'crm.search'?",
    "f:18: Workflow/w: steps.1.with.tools.1: fits no Tool and no function so far; did you mean 'crm.note'?",
]


def _check(known: frozenset[str] | None, text: str = TEXT) -> Findings:
    loaded = load_text(text, "f")
    return check(
        ConfigDocument.of(item.resource for item in loaded),
        places={item.key: item.where for item in loaded},
        advisers={
            "Workflow": lambda resource, document, where: unknown_tools(
                resource, document, where, lambda: known
            )
        },
    )


def test_tools_that_nobody_has_are_warned_of() -> None:
    assert _check(frozenset({"crm.note"})) == Findings(warnings=WARNINGS)
    assert _check(frozenset({"crm.note", "crm.serach", "crm.nota"})) == Findings()


def test_nothing_is_said_where_the_functions_are_not_known() -> None:
    assert _check(None) == Findings()


@pytest.mark.parametrize("steps", ["7", "[7, {with: 7}, {call: tool, with: {tool: 7}}, {call: agent, with: {tools: [7, {}]}}]"])  # fmt: skip
def test_steps_of_another_form_name_no_tools(steps: str) -> None:
    assert _check(frozenset(), f"{HEAD}kind: Workflow\nmetadata: {{name: w}}\nsteps: {steps}\n") == Findings()


def test_files_are_checked_against_the_functions_of_this_machine(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = home / "my_tools.py"
    tools.write_text(
        "from agents.tools import tool\nprint('loaded')\n\n@tool('crm.note')\ndef note() -> int:\n    return 1\n"
    )
    loaded = load_text(TEXT, "f")
    monkeypatch.setenv("AIRI_TOOLS_PATH", str(tools))
    assert check_files(loaded).warnings == WARNINGS
    assert capsys.readouterr() == ("", "loaded\n"), "once, and what is printed is no part of the answer"
    assert not check_files(load_text(TEXT.partition("---")[0], "f")).warnings
    assert capsys.readouterr() == ("", ""), "nobody's code runs where nothing depends on it"


@pytest.mark.parametrize("tools", [None, "raise RuntimeError", "gone"])
def test_files_are_not_warned_of_where_this_machine_has_no_functions(
    tools: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("AIRI_TOOLS_PATH", raising=False)
    if tools is not None:
        monkeypatch.setenv("AIRI_TOOLS_PATH", str(home / "broken.py"))
    if tools not in (None, "gone"):
        (home / "broken.py").write_text(tools)
    assert check_files(load_text(TEXT, "f")) == Findings()
