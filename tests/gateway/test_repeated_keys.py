"""Keys that stand twice in a body: found exactly when the standard library's decoder finds them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.errors import InvalidRequestError
from gateway.operations import decode_body
from gateway.repeated_keys import RepeatedKeyError, check_keys

_KEYS = st.one_of(
    st.sampled_from(["a", "b", "", ":", '"', "\\", '\\":', "é", "😀", "u003a", "\\u003a"]),
    st.text(max_size=3).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text)),
)
_TEXTS = st.one_of(
    st.sampled_from(['{"a":1,"a":2}', "\\u003a", ':":', "\\\\:", "http://x:1", '\\\\":']), _KEYS
)


class Pairs(list[tuple[str, Any]]):
    """An object as pairs, so that a key may stand in it twice."""


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(-5, 5), _TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(st.tuples(_KEYS, inner), max_size=4).map(Pairs)
    ),
    max_leaves=12,
)
_OBJECTS = st.lists(st.tuples(_KEYS, _VALUES), max_size=5).map(Pairs)


@st.composite
def _written(draw: st.DrawFn, value: Any) -> str:
    """Write a value as some client may: with spaces anywhere, and any character as an escape."""
    space = draw(st.sampled_from(["", "", " ", "\n\t "]))
    if isinstance(value, Pairs):
        pairs = [f"{draw(_text(key))}{space}:{space}{draw(_written(each))}{space}" for key, each in value]
        return "{" + space + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(space + draw(_written(each)) for each in value) + "]"
    return draw(_text(value)) if isinstance(value, str) else json.dumps(value)


@st.composite
def _text(draw: st.DrawFn, text: str) -> str:
    plain = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if text.isascii() and text.isprintable() and draw(st.booleans()):
        form = draw(st.sampled_from(["\\u{:04x}", "\\u{:04X}"]))
        plain = '"' + "".join(form.format(ord(char)) for char in text) + '"'
    return plain


def _has_repeated_keys(raw: bytes) -> bool:
    found = False

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        found = found or len({key for key, _ in pairs}) < len(pairs)
        return dict(pairs)

    json.loads(raw, object_pairs_hook=look)
    return found


@settings(max_examples=250, deadline=None)
@given(_OBJECTS.flatmap(_written))
def test_against_the_standard_librarys_decoder(written: str) -> None:
    raw = written.encode()
    body = msgspec.json.decode(raw, type=dict[str, Any])
    if not _has_repeated_keys(raw):
        check_keys(raw, body)
        return
    with pytest.raises(RepeatedKeyError) as found:
        check_keys(raw, body)
    assert f'"{found.value.key}"' in written or "\\" in written


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":1,"b":{"c":[{"d":1},{"d":1,"d":2}]}}', "d"),
        (b'{"a":1,"\\u0061":2}', "a"),
        # The value that is lost holds as many escaped colons as the one that stays lacks.
        (b'{"a":"\\u003a\\u003a","a":""}', "a"),
        (b'{"a":"\\u003a","b":"\\\\u003a","b":"\\\\\\u003a"}', "b"),
        (b'{"x\\\\":1,"x\\\\" :2}', "x\\"),
        (b'{"a":123456789012345678901234567890,"a":1}', "a"),
    ],
)
def test_repeated_keys_are_named(raw: bytes, key: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_body(raw)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "duplicate_key", key)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"b":1}',
        b'{"a" : {"a": {"a" :1}}, "b": [{"a":1},{"a":1}]}',
        b'{"a":"\\"a\\":1,\\"a\\":2"}',
        b'{"a":":::","b":"\\u003a","c":"\\\\u003a","\\u003a":1,"":2}',
    ],
)
def test_other_bodies_pass(raw: bytes) -> None:
    assert decode_body(raw) == json.loads(raw)


def test_a_body_that_repeats_a_key_in_great_depth_is_a_400_too() -> None:
    raw = b'{"a":' * 5_000 + b'{"b":1,"b":2}' + b"}" * 5_000
    with pytest.raises(InvalidRequestError):
        decode_body(raw)
