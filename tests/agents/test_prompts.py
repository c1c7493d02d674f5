"""Prompts and expressions: what they give, and what they are kept from."""

from __future__ import annotations

from typing import Any

import pytest

from agents import prompts, templates
from agents.errors import StepFailed

VALUES: dict[str, Any] = {
    "inputs": {"name": "Ann", "list": [1, 2], "text": "a" * 10},
    "steps": {"a": {"output": {"q": ["x"]}}},
    "run": {},
    "tenant": {"id": "t"},
    "workflow": {},
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Hi {{ inputs.name }}", "Hi Ann"),
        ("{% for i in inputs.list %}{{ loop.index }}:{{ i }} {% endfor %}", "1:1 2:2 "),
        ("{{ inputs.list }} {{ steps.a.output }}", '[1,2] {"q":["x"]}'),
        ("{{ inputs.missing | default('none') }}", "none"),
        ("{{ inputs.name.upper() }} {{ inputs.name | lower }}", "ANN ann"),
        ("{% for k, v in inputs.items() %}{{ k }} {% endfor %}", "name list text "),
        ("{{ inputs | tojson }}", '{"name":"Ann","list":[1,2],"text":"aaaaaaaaaa"}'),
    ],
)
def test_prompts(text: str, wanted: str) -> None:
    assert prompts.render(text, VALUES) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{{ inputs.missing }}",
        "{{ inputs.__class__ }}",
        "{{ inputs.name.__class__.__mro__ }}",
        "{{ ''.join(['a']) }}",
        "{{ 'a' * 10000000 }}",
        "{{ [1] * 10000000 }}",
        "{{ 2 ** 10000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:999999999d}'.format(1) }}",
        "{{ inputs.text.ljust(999999999) }}",
        "{{ inputs.text | center(999999999) }}",
        "{{ range(10000000) }}",
        "{% for a in range(1000) %}{% for b in range(1000) %}xxxxxxxxxx{% endfor %}{% endfor %}",
        "{% set x = inputs.update({'a': 1}) %}",
        "{{ inputs.list.append(1) }}",
        "{{ self }}{{ self._TemplateReference__context }}",
        "{{ cycler }}",
        "{{ lipsum() }}",
    ],
)
def test_the_sandbox_holds(text: str) -> None:
    with pytest.raises(StepFailed) as caught:
        prompts.render(text, VALUES)
    assert caught.value.error_class == "expression"


@pytest.mark.parametrize(
    "text",
    [
        "{% include 'x' %}",
        "{% macro m() %}{% endmacro %}",
        "{% for a in [] %}{% for b in [] %}{% for c in [] %}{% endfor %}{% endfor %}{% endfor %}",
        "x" * 100_001,
        "{{ x | nofilter }}",
    ],
)
def test_refused_when_checked(text: str) -> None:
    assert prompts.problem(text, ("x",)) is not None


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("${{ inputs.list }}", [1, 2]),
        ("n=${{ size(inputs.list) }} ${{ inputs.name }} ${{ steps.a.output }}", 'n=2 Ann {"q":["x"]}'),
        ({"a": ["${{ inputs.name }}", 1, None]}, {"a": ["Ann", 1, None]}),
        ("${{ {'k': '}}'} }}", {"k": "}}"}),
        ("no expression", "no expression"),
    ],
)
def test_expressions(value: Any, wanted: Any) -> None:
    assert templates.resolve(value, VALUES) == wanted


def test_references() -> None:
    assert prompts.step_references("{{ steps.a.output }} {{ steps['b'].output }} {{ inputs.c }}") == {
        "a",
        "b",
    }
    assert templates.step_references("${{ steps.a.output + steps['b'].output }}") == {"a", "b"}
    assert templates.step_references("steps.a without expression") == set()
