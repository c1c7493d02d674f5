"""The configuration as a process of this room sees it: looked up seldom, and never lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from airi.config.document import ConfigDocument

_FRESH_S = 1.0


class FreshDocument:
    """The newest configuration, looked up at most once a second; the last known one while the store is away."""

    def __init__(self, current: Callable[[], ConfigDocument]) -> None:
        self._current = current
        self._lock = threading.Lock()
        self._document: ConfigDocument | None = None
        self._until = 0.0

    def __call__(self, *, anew: bool = False) -> ConfigDocument:
        """The document; ``anew`` looks it up even if that was done within the last second."""
        with self._lock:
            if anew or self._document is None or time.monotonic() > self._until:
                self._look_up()
            assert self._document is not None
            return self._document

    def _look_up(self) -> None:
        try:
            self._document = self._current()
        except DBAPIError:
            if self._document is None:
                raise
        self._until = time.monotonic() + _FRESH_S
