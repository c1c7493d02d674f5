"""Name patterns."""

from __future__ import annotations

import fnmatch
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.patterns import allowed, matches, within

word = st.text("ab*", max_size=8)
plain = st.text("ab", max_size=8)


@given(word, plain)
def test_the_star_is_any_run_of_characters(pattern: str, text: str) -> None:
    expected = re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None
    assert matches(pattern, text) == expected == fnmatch.fnmatchcase(text, pattern)


@given(word, word, plain)
def test_within_is_sound(narrow: str, wide: str, text: str) -> None:
    if within(narrow, wide) and matches(narrow, text):
        assert matches(wide, text)


@pytest.mark.parametrize(
    ("narrow", "wide", "expected"),
    [
        ("gpt-4", "gpt-*", True),
        ("gpt-4*", "gpt-*", True),
        ("*", "gpt-*", False),
        ("g*", "gpt-*", False),
        ("*", "*", True),
    ],
)
def test_within(narrow: str, wide: str, expected: bool) -> None:
    assert within(narrow, wide) is expected


def test_allowed() -> None:
    assert allowed(["*"], "x")
    assert allowed(["a", "x*"], "xy")
    assert not allowed([], "x")
    assert not allowed(["X"], "x")


def test_no_pattern_takes_long() -> None:
    started = time.process_time()
    assert not matches("a*" * 200 + "b", "a" * 10_000)
    assert time.process_time() - started < 0.5
