"""Logs: one JSON object a line, whatever is in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from airi import logs
from airi.logs import MESSAGE_LIMIT, JsonFormatter, hide
from airi.secrets import Secret


def _line(message: str, *values: object, **more: object) -> dict[str, object]:
    record = logging.getLogger("room").makeRecord(
        "room", logging.WARNING, __file__, 1, message, values, None, extra=more
    )
    text = JsonFormatter("gateway").format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_a_line_has_time_level_process_logger_message_and_extras() -> None:
    line = _line("hello %s", "world", tenant="acme", tries=3)
    assert line["message"] == "hello world"
    assert line["level"] == "warning"
    assert line["process"] == "gateway"
    assert line["logger"] == "room"
    assert (line["tenant"], line["tries"]) == ("acme", 3)
    assert str(line["time"]).endswith("Z")


def test_secrets_line_breaks_and_odd_values_do_no_harm() -> None:
    line = _line("a\nb", key=Secret("sk-very-secret"), odd=object())
    assert line["message"] == "a\nb"
    assert line["key"] == "Secret(***)"
    assert "object object" in str(line["odd"])


def test_long_messages_are_cut() -> None:
    assert len(str(_line("x" * (MESSAGE_LIMIT * 2))["message"])) == MESSAGE_LIMIT


def test_exceptions_are_kept_with_their_trace() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.makeLogRecord({"msg": "it failed", "exc_info": sys.exc_info()})
    line = json.loads(JsonFormatter("p").format(record))
    assert "ValueError: broken" in line["exception"]


def test_what_is_hidden_shows_in_no_part_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_hidden", set())
    hide('hunter"2')
    hide("abc")
    try:
        raise ValueError('ERR unknown command, with args beginning with: hunter"2')
    except ValueError as error:
        line = _line('no hunter"2 here, only abc', error=repr(error), odd=[1], deep=error)
        record = logging.makeLogRecord({"msg": "it failed", "exc_info": sys.exc_info()})
    assert line["message"] == "no *** here, only abc"
    assert line["odd"] == [1]
    assert "hunter" not in json.dumps(line) + JsonFormatter("p").format(record)


def test_the_last_words_of_a_process_are_a_line_too() -> None:
    code = "from airi.logs import configure, hide; configure('p'); hide('hunter2'); raise ValueError('hunter2 is out')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert line["level"] == "critical"
    assert "ValueError: *** is out" in line["exception"]
