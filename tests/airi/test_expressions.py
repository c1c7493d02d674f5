"""CEL: types, positions, suggestions and every bound."""

from __future__ import annotations

import contextlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi import expressions
from airi.expressions import Declarations, EvaluationError, ExpressionError

DECLARATIONS = Declarations(
    {
        "tenant": "string",
        "model.region": "string",
        "data.classes": "list(string)",
        "data.counts": "map(string,int)",
        "data.max_score": "double",
        "call.stream": "bool",
        "text.chars": "int",
        "inputs": "dyn",
        "items": "dyn",
    }
)

# A NUL is refused (the library would cut the text there).
TEXTS = st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=8)


def compiled(text: str) -> expressions.Program:
    return expressions.compile(text, DECLARATIONS)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        (
            "model.region != 'eu' && data.classes.exists(c, c.startsWith('pii.'))",
            {"model.region": "us", "data.classes": ["pii.email"]},
            True,
        ),
        ("data.counts['pii.email'] > 2", {"data.counts": {"pii.email": 3}}, True),
        ("inputs.a.b + 1", {"inputs": {"a": {"b": 2}}}, 3),
        (
            "inputs.list.map(x, x.name).join(', ')",
            {"inputs": {"list": [{"name": "a"}, {"name": "b"}]}},
            "a, b",
        ),
        ("{'a': [1, 2.5, null, true]}", {}, {"a": [1, 2.5, None, True]}),
        ("has(inputs.missing) ? 1 : 2", {"inputs": {}}, 2),
    ],
)
def test_values(text: str, values: dict[str, object], expected: object) -> None:
    assert compiled(text).evaluate(values) == expected


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("model.regio == 'x'", 1, 1, "did you mean 'model.region'"),
        ("true &&\n  tenantt == 'x'", 2, 3, "did you mean 'tenant'"),
        ("tenant ==", 1, 10, "mismatched input"),
        ("tenant == 3", 1, 8, "no matching overload"),
        ("model == 'a'", 1, 1, "model.region"),
    ],
)
def test_compile_errors_say_where(text: str, line: int, column: int, words: str) -> None:
    with pytest.raises(ExpressionError, match=words) as caught:
        compiled(text)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_type_of_the_result() -> None:
    with pytest.raises(ExpressionError, match="bool is needed"):
        expressions.compile("size(data.classes)", DECLARATIONS, expect="bool")


@pytest.mark.parametrize(
    "text",
    [
        "(" * 40 + "1" + ")" * 40,
        "1" + "+1" * 60,
        "'" + "x" * 5_000 + "'",
        "data.classes.all(a, data.classes.all(b, data.classes.all(c, a == c)))",
        "[data.classes.all(a, {'k': data.classes.all(b, data.classes.all(c, a == c))}.k)]",
    ],
)
def test_expressions_that_are_too_large_do_not_compile(text: str) -> None:
    with pytest.raises(ExpressionError):
        compiled(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("items.map(x, items.map(y, y)).size()", {"items": list(range(500))}),
        ("tenant.replace('x', tenant)", {"tenant": "x" * 50_000}),
        ("items.map(x, tenant + tenant).join('')", {"items": list(range(9_000)), "tenant": "x" * 100_000}),
        ("items.all(x, tenant.matches('a'))", {"items": list(range(9_000)), "tenant": "x" * 1_000_000}),
        ("size(items)", {"items": "x" * 5_000_000}),
        ("size(items)", {"items": [0] * 200_000}),
        ("data.counts['absent'] > 1", {"data.counts": {}}),
        ("tenant == 'a'", {}),
        ("inputs.n", {"inputs": {"n": 2**70}}),
        ("tenant", {"tenant": "a\0b"}),
    ],
)
def test_evaluation_is_bounded_and_says_why(text: str, values: dict[str, object]) -> None:
    with pytest.raises(EvaluationError):
        compiled(text).evaluate(values)


def test_deep_values_are_refused() -> None:
    value: object = 1
    for _ in range(200):
        value = [value]
    with pytest.raises(EvaluationError, match="levels"):
        compiled("inputs").evaluate({"inputs": value})


def test_joining_what_a_fan_out_returned_is_within_the_bounds() -> None:
    items = [{"output": {"text": "x" * 10_000}} for _ in range(20)]
    assert len(compiled("items.map(s, s.output.text).join('\\n')").evaluate({"items": items})) == 200_019


def test_a_reused_activation_gives_the_same_value_in_threads() -> None:
    program = compiled("tenant == 'acme' && text.chars < 10")
    activation = DECLARATIONS.activation({"tenant": "acme", "text.chars": 3})
    wrong: list[object] = []

    def work() -> None:
        wrong.extend(1 for _ in range(500) if program.evaluate_in(activation) is not True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_references_are_the_declared_names() -> None:
    assert compiled("data.classes.exists(tag, tag == tenant)").references == {"data.classes", "tenant"}
    assert compiled("1 + 1 == 2").constant


def test_templates() -> None:
    def render(text: str, **values: object) -> object:
        return expressions.render(text, values, DECLARATIONS)

    assert render("${{ inputs.a }}", inputs={"a": [1, {"b": None}]}) == [1, {"b": None}]
    assert render("n=${{ inputs.a }}; ${{ '}}' }}", inputs={"a": [1]}) == "n=[1]; }}"
    assert render("${{ {'x': {'y': 1}}.x }}") == {"y": 1}
    assert render("plain") == "plain"
    assert render("") == ""
    with pytest.raises(ExpressionError, match="without") as caught:
        render("first\nsecond ${{ inputs")
    assert (caught.value.line, caught.value.column) == (2, 8)
    with pytest.raises(ExpressionError, match="did you mean 'inputs'") as caught:
        render("ab ${{ inputz }}")
    assert (caught.value.line, caught.value.column) == (1, 8)


@given(st.text(max_size=60))
def test_any_text_compiles_or_is_refused_cleanly(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        compiled(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
        max_leaves=20,
    )
)
def test_json_like_values_come_back_as_they_went_in(value: object) -> None:
    assert compiled("inputs").evaluate({"inputs": value}) == value
