"""What a process says about itself once a second: memory, CPU time, event loop lag, and what its rooms set."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Return this process's resident memory now (Linux), or its peak where that is all the system tells."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class ProcessGauges:
    """Gauges of this process. :meth:`set` is safe from any thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._started = time.time()
        self._values: dict[str, float] = {}
        self._worst_lag = 0.0

    def set(self, name: str, value: float) -> None:
        """Set a gauge of the process's own."""
        self._values[name] = value

    def saw_lag(self, seconds: float) -> None:
        """Note how late the loop woke a sleeper; the worst since the last :meth:`collect` is reported."""
        self._worst_lag = max(self._worst_lag, seconds)

    def collect(self) -> dict[str, float]:
        """Return every gauge by name and start a new lag window."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        values = dict(self._values)
        values["process_resident_bytes"] = float(resident_bytes())
        values["process_cpu_seconds"] = usage.ru_utime + usage.ru_stime
        values["process_start_time_seconds"] = self._started
        values["loop_lag_seconds"] = self._worst_lag
        self._worst_lag = 0.0
        return values
