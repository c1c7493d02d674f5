"""Logs: one JSON object a line on standard error, through the standard library's ``logging``.

``logger.info("text", extra={"tenant": …})`` adds fields. Secrets are safe by type (:class:`airi.secrets.Secret`
prints as ``***``), and by :func:`hide` where a library may repeat one; content of calls must not be logged at all.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType
from typing import Any

import msgspec

MESSAGE_LIMIT = 8_192
"""The most characters of a message or a stack trace that are kept."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SHORTEST_SECRET = 4
_hidden: set[str] = set()
_NOISY = ("httpx", "httpcore", "urllib3", "asyncio", "celery.redirected", "uvicorn.error")


def hide(secret: str) -> None:
    """Show ``***`` for a secret in every line of this process: for one that a library may put into its errors."""
    if len(secret) >= _SHORTEST_SECRET:  # a shorter one would be found in half of all words
        _hidden.add(secret)


def _clean(text: str) -> str:
    for secret in _hidden:
        text = text.replace(secret, "***")
    return text


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
        if _hidden:
            line = {name: _clean(value) if isinstance(value, str) else value for name, value in line.items()}
        return msgspec.json.encode(line, enc_hook=lambda value: _clean(repr(value))).decode()


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
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last words of a process are a line of its log too."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__name__).critical("the process ends by an error", exc_info=(kind, error, trace))
