"""Logs: one JSON object a line on standard error, through the standard library's ``logging``.

``logger.info("text", extra={"tenant": …})`` adds fields. Secrets are safe by type (:class:`airi.secrets.Secret`
prints as ``***``); content of calls must not be logged at all.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import msgspec

MESSAGE_LIMIT = 8_192
"""The most characters of a message or a stack trace that are kept."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOISY = ("httpx", "httpcore", "urllib3", "asyncio", "celery.redirected", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON: time (UTC), level, process, pid, logger, message, extras."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._pid = os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the line's end."""
        seconds, fraction = divmod(record.created, 1)
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": self._pid,
            "logger": record.name,
            "message": record.getMessage()[:MESSAGE_LIMIT],
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MESSAGE_LIMIT:]
        return msgspec.json.encode(line, enc_hook=repr).decode()


def configure(process: str, level: int = logging.INFO) -> None:
    """Send all logs of this process to standard error as JSON lines; a second call replaces the first."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
