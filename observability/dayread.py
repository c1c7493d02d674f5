"""Reading a day's file while another process writes it: read-only, under a deadline, patient with passing trouble."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from observability.errors import QueryTooLargeError, RecordStoreError

T = TypeVar("T")
_INSTRUCTIONS_PER_LOOK = 20_000
_TRIES = 5
_PAUSE_S = 0.05


def read(path: Path, deadline_s: float, ask: Callable[[sqlite3.Connection], T], nothing: T) -> T:
    """Return what ``ask`` finds in the file; ``nothing`` when retention has just removed it.

    ``ask`` may be called again after a failure, so it must fetch everything before it changes anything. Raises
    :class:`QueryTooLargeError` after ``deadline_s``, :class:`RecordStoreError` when the file cannot be read.
    """
    end = time.monotonic() + deadline_s
    for attempt in range(1, _TRIES + 1):
        try:
            return _once(path, end, ask)
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise QueryTooLargeError(
                    f"The question took more than {deadline_s:g} s; narrow the time range or the filters.",
                    param="since",
                ) from error
            if not path.exists():
                return nothing
            # The writer may be just making or closing the file: its log then appears or vanishes under us.
            if attempt == _TRIES:
                raise RecordStoreError(f"{path.name} cannot be read: {error}") from error
            time.sleep(_PAUSE_S)
        except sqlite3.DatabaseError as error:
            raise RecordStoreError(f"{path.name} cannot be read: {error}") from error
    raise AssertionError("unreachable")


def _once(path: Path, end: float, ask: Callable[[sqlite3.Connection], T]) -> T:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1)
    try:
        db.set_progress_handler(lambda: time.monotonic() > end, _INSTRUCTIONS_PER_LOOK)
        return ask(db)
    finally:
        db.close()
