"""Logs: one JSON object a line, whatever is in it."""

from __future__ import annotations

import json
import logging
import sys

from airi.logs import MESSAGE_LIMIT, JsonFormatter
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
