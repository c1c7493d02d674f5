"""Judging failures: what is retried, what is told, what is hidden."""

from __future__ import annotations

import msgspec
import pytest

from airi.http.errors import ConnectFailed, ConnectionLost, FirstByteTimeout, TooManyWaiters, TotalTimeout
from airi.secrets import Secret
from routing.errors import NotConfigured
from routing.outcome import of_error, of_status, openai_error, retry_after_s


@pytest.mark.parametrize(
    ("status", "elsewhere", "again", "blame"),
    [
        (400, False, False, False),
        (401, True, False, True),
        (403, True, False, True),
        (404, True, False, False),
        (408, True, True, False),
        (422, False, False, False),
        (429, True, True, False),
        (500, True, True, True),
        (501, False, False, True),
        (503, True, True, True),
        (529, True, True, True),
        (302, False, False, False),
    ],
)
def test_statuses(status: int, elsewhere: bool, again: bool, blame: bool) -> None:
    failure = of_status(status, [], b"", "m", None)
    assert (failure.elsewhere, failure.again, failure.blame) == (elsewhere, again, blame)


def test_errors_of_the_wire() -> None:
    assert of_error(ConnectFailed("http://10.0.0.7: refused"), "m").unreachable
    lost = of_error(ConnectionLost("http://10.0.0.7 closed"), "m")
    assert lost.error is not None
    assert (lost.again, lost.error.status, lost.error.reached, "10.0.0.7" in lost.error.message) == (
        True,
        502,
        True,
        False,
    )
    late = of_error(FirstByteTimeout("x"), "m")
    assert late.error is not None
    assert (late.error.status, late.again) == (504, True)
    assert not of_error(TotalTimeout("x"), "m").elsewhere
    unset = of_error(NotConfigured("A_KEY is not set"), "m")
    assert unset.error is not None
    assert (unset.elsewhere, unset.again, unset.blame, unset.counts) == (True, False, False, False)
    assert (unset.error.status, unset.error.reached, "A_KEY" in unset.error.message) == (503, False, False)
    busy = of_error(TooManyWaiters("x"), "m")
    assert (busy.blame, busy.again) == (False, True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"a","type":"t","code":"c","param":"p"}}', "a"),
        (b'{"object":"error","message":"flat","code":400}', "flat"),
        (b'{"error":"text"}', "text"),
        (b'{"detail":"fast"}', "fast"),
        (b"<html>bad gateway</html>", "The upstream answered with status 400."),
        (b"[1]", "The upstream answered with status 400."),
        (b"", "The upstream answered with status 400."),
    ],
)
def test_errors_take_openais_form(body: bytes, message: str) -> None:
    error = msgspec.json.decode(openai_error(400, body))["error"]
    assert error["message"] == message
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"]


def test_our_key_never_stands_in_an_error() -> None:
    body = openai_error(400, b'{"error":{"message":"bad key sk-canary"}}', Secret("sk-canary"))
    assert b"sk-canary" not in body


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"1.5")], 1.5),
        ([(b"retry-after-ms", b"250"), (b"retry-after", b"9")], 0.25),
        ([(b"retry-after", b"Thu, 01 Jan 1970 00:00:00 GMT")], 0.0),
        ([(b"retry-after", b"soon")], 0.0),
        ([(b"retry-after-ms", b"nan")], 0.0),
        ([(b"retry-after-ms", b"inf")], 0.0),
        ([], 0.0),
    ],
)
def test_retry_after(headers: list[tuple[bytes, bytes]], seconds: float) -> None:
    assert retry_after_s(headers) == seconds
