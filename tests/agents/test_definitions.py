"""Workflow files: what is accepted, and how every fault is told with its line and a suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents import checking
from agents.checking import Catalogue
from airi.config.kinds import Workflow
from airi.config.loader import load_files, load_text
from airi.errors import ConfigError
from tests.agents.rig import define

ROOT = Path(__file__).resolve().parents[2]
LLM = "call: llm, with: {model: fast, prompt: p}"


def _problems(text: str, catalogue: Catalogue | None = None) -> list[str]:
    (loaded,) = load_text(
        "apiVersion: airi/v1alpha1\nkind: Workflow\nmetadata: {name: t}\n" + text, "flow.yaml"
    )
    assert isinstance(loaded.resource, Workflow)
    with pytest.raises(ConfigError) as caught:
        checking.parse(loaded.resource, loaded.where, catalogue)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("steps:\n  - {id: a, call: lmm}", 5, "did you mean 'llm'?"),
        ("steps:\n  - {id: a, call: llm, wiht: {}}", 5, "unknown key; did you mean 'with'?"),
        ("steps:\n  - id: a\n    call: llm\n    with: {model: m, promt: p}", 7, "did you mean 'prompt'?"),
        ("steps:\n  - {id: a}", 5, "exactly one of 'call' and 'wait'"),
        (f"steps:\n  - {{id: a, {LLM}}}\n  - {{id: a, {LLM}}}", 6, "two steps are called 'a'"),
        (f"steps:\n  - {{id: plan, {LLM}}}\n  - {{id: b, needs: [pln], {LLM}}}", 6, "unknown step 'pln'; did you mean 'plan'?"),
        (f"steps:\n  - {{id: a, needs: [b], {LLM}}}\n  - {{id: b, needs: [a], {LLM}}}", 5, "circle: a → b → a"),
        (f"steps:\n  - {{id: a, {LLM}, if: '${{{{ inputs.x == }}}}'}}", 5, "Syntax error"),
        (f"steps:\n  - {{id: a, {LLM}, if: 'input.x'}}", 5, "did you mean 'inputs'?"),
        (f"inputs: {{properties: {{topic: {{}}}}}}\nsteps:\n  - {{id: a, {LLM}, if: 'has(inputs.topc)'}}", 6, "unknown input 'topc'; did you mean 'topic'?"),
        ("inputs: {properties: {topic: {}}}\nsteps:\n  - id: a\n    call: llm\n    with: {model: m, prompt: 'on {{ inputs.topc }}'}", 8, "unknown input 'topc'"),
        (f"steps:\n  - {{id: a, {LLM}}}\n  - id: b\n    call: llm\n    with:\n      model: m\n      prompt: '{{{{ steps.a.output }}}}'", 10, "without needing it; add 'a' to 'needs'"),
        (f"steps:\n  - {{id: a, {LLM}}}\n  - id: b\n    needs: [a]\n    call: tool\n    with: {{tool: t, args: {{x: '${{{{ steps.aa.output }}}}'}}}}", 9, "unknown step 'aa'; did you mean 'a'?"),
        ("steps:\n  - {id: a, call: llm, with: {model: m, prompt: '{{ nobody }}'}}", 5, "unknown name 'nobody'"),
        ("steps:\n  - {id: a, call: llm, with: {model: m, prompt: '{{ x'}}", 5, "prompt: line 1"),
        ("steps:\n  - {id: a, call: llm, with: {model: m, prompt: '${{ inputs.x }}'}}", 5, "without the '$'"),
        ("steps:\n  - {id: a, wait: {approval: {role: editor}}}", 5, "role"),
        ("inputs: {type: objekt}\nsteps:\n  - {id: a, wait: {duration: 1s}}", 4, "not a JSON Schema"),
        ("steps:\n  - {id: a, wait: {duration: soon}}", 5, "expected a duration"),
        ("steps:\n  - {id: a, wait: {duration: 1s}, retry: {on: [rate_limt]}}", 5, "rate_limit"),
        (f"steps:\n  - {{id: a, {LLM}}}\noutputs:\n  x: '${{{{ steps.b.output }}}}'", 7, "unknown step 'b'"),
    ],
)  # fmt: skip
def test_faults_name_file_line_and_a_suggestion(text: str, line: int, says: str) -> None:
    problems = _problems(text)
    assert any(f"flow.yaml:{line}: Workflow/t: " in problem and says in problem for problem in problems), (
        problems
    )


def test_unknown_models_and_tools() -> None:
    catalogue = Catalogue(frozenset({"fast", "smart"}), frozenset({"search.docs"}))
    text = "steps:\n  - {id: a, call: agent, with: {model: smrt, input: x, tools: [search.dcs]}}"
    assert _problems(text, catalogue) == [
        "flow.yaml:5: Workflow/t: steps.0.with.model: unknown model 'smrt'; did you mean 'smart'?",
        "flow.yaml:5: Workflow/t: steps.0.with.tools.0: unknown tool 'search.dcs'; did you mean 'search.docs'?",
    ]


@pytest.mark.parametrize(
    "inputs", ["{}", "{additionalProperties: true, properties: {a: {}}}", "{properties: {topic: {}, a: {}}}"]
)
def test_inputs_that_are_open_or_declared_may_be_named(inputs: str) -> None:
    prompt = (
        "{{ inputs.topic }}{{ inputs.get('a') }}{{ inputs.items() }}"
        if "topic" in inputs
        else "{{ inputs.x }}"
    )
    text = f"inputs: {inputs}\nsteps:\n  - {{id: a, call: llm, with: {{model: m, prompt: \"{prompt}\"}}, if: 'inputs.size() > 0'}}"
    (loaded,) = load_text(
        "apiVersion: airi/v1alpha1\nkind: Workflow\nmetadata: {name: t}\n" + text, "flow.yaml"
    )
    assert isinstance(loaded.resource, Workflow)
    assert checking.parse(loaded.resource, loaded.where).name == "t"


def test_all_faults_come_together() -> None:
    text = "steps:\n  - {id: a, call: llm, with: {model: m}}\n  - {id: b, needs: [c], wait: {duration: 1s}}"
    assert len(_problems(text)) == 2


def test_identity_is_the_content() -> None:
    one = define(f"steps: [{{id: a, {LLM}}}]")
    same = define("steps:\n  - id: a\n    with: {prompt: p, model: fast}\n    call: llm")
    other = define(f"steps: [{{id: b, {LLM}}}]")
    assert one.id == same.id != other.id
    assert len(one.id) == 64


def test_order_follows_needs() -> None:
    flow = define(f"steps: [{{id: c, needs: [b], {LLM}}}, {{id: a, {LLM}}}, {{id: b, needs: [a], {LLM}}}]")
    assert flow.order == ("a", "b", "c")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples/workflows").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_examples_are_valid(file: Path) -> None:
    from agents.tools.functions import FUNCTIONS, load_tools

    load_tools([ROOT / "examples/tools.py"])
    catalogue = Catalogue(frozenset({"fast", "smart"}), frozenset(found.name for found in FUNCTIONS))
    for loaded in load_files([file]):
        assert isinstance(loaded.resource, Workflow)
        checking.parse(loaded.resource, loaded.where, catalogue)
