"""The traceparent header, as the specification's own examples and its test-suite's bad ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.tracecontext import TraceContext, format_traceparent, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-ff", 255),
        (f"  00-{TRACE}-{SPAN}-01\t", 1),
        (f"cc-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-adds", 1),
    ],
)
def test_good_headers(header: str, flags: int) -> None:
    assert parse(header) == parse(header.encode()) == TraceContext(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "header",
    [
        None, "", b"", "hello", b"\xff\xfe",
        f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-01-", f"00-{TRACE}-{SPAN}-01-x",
        f"00-{TRACE}-{SPAN}-01.x", f"ff-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01.x", f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN.upper()}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01", f"00-{TRACE}0-{SPAN}-01", f"00-{TRACE}-{SPAN}-0g", f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-{'x' * 600}", f"٠٠-{TRACE}-{SPAN}-01",
    ],
)  # fmt: skip
def test_bad_headers(header: str | bytes | None) -> None:
    assert parse(header) is None


@pytest.mark.parametrize(("flags", "sampled"), [(0, False), (1, True), (2, False), (3, True), (0xFE, False)])
def test_the_sampled_bit_is_a_bit(flags: int, sampled: bool) -> None:
    assert TraceContext(TRACE, SPAN, flags).sampled is sampled


@given(st.text())
def test_any_text_is_read_without_a_fault(text: str) -> None:
    parse(text)


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_what_is_written_is_read(trace: int, span: int, flags: int) -> None:
    assert parse(format_traceparent(f"{trace:032x}", f"{span:016x}", flags)) == TraceContext(
        f"{trace:032x}", f"{span:016x}", flags & 3
    )
