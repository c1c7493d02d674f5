"""A circuit breaker per target: closed, open, half-open, on the error rate of a sliding window.

Time is handed in (seconds, monotonic), so that the simulator and the tests drive the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """When a breaker opens and for how long. The pause doubles with each failed probe up to ``max_open_s``."""

    window_s: float = 10.0
    min_failures: int = 5
    error_rate: float = 0.5
    open_s: float = 2.0
    max_open_s: float = 60.0
    probe_s: float = 10.0
    """A probe that has said nothing for so long no longer blocks the next one."""


DEFAULT_OPTIONS = BreakerOptions()


class Breaker:
    """Counts outcomes in two half windows. ``allows`` is read before a call, ``took`` when a call is sent."""

    __slots__ = (
        "_bad",
        "_good",
        "_half_started",
        "_old_bad",
        "_old_good",
        "_open_until",
        "_options",
        "_pause",
        "_probe_until",
        "_state",
        "closed",
    )

    def __init__(self, options: BreakerOptions = DEFAULT_OPTIONS) -> None:
        self._options = options
        self._state: State = "closed"
        self.closed = True
        """The ordinary state: everything is allowed and nothing needs to be asked."""
        self._good = self._bad = self._old_good = self._old_bad = 0
        self._half_started = 0.0
        self._open_until = 0.0
        self._probe_until = 0.0
        self._pause = options.open_s

    def state(self, now: float) -> State:
        """Return the state at ``now``; an open breaker whose pause is over is half-open."""
        if self._state == "open" and now >= self._open_until:
            return "half_open"
        return self._state

    def allows(self, now: float) -> bool:
        """Say whether a call may be sent: always when closed, one probe at a time when half-open."""
        if self._state == "closed":
            return True
        return now >= self._open_until and now >= self._probe_until

    def opens_at(self, now: float) -> float:
        """Return when the next call may be sent (``now`` when one may be sent already)."""
        return now if self._state == "closed" else max(now, self._open_until, self._probe_until)

    def took(self, now: float) -> None:
        """A call is being sent; when half-open it is the probe."""
        if self._state != "closed":
            self._state = "half_open"
            self._probe_until = now + self._options.probe_s

    def succeeded(self, now: float) -> None:
        """The target answered as it should."""
        if self._state != "closed":
            self._close(now)
        self._roll(now)
        self._good += 1

    def abandoned(self) -> None:
        """The call ended without saying anything of the target (its caller left): free the probe."""
        self._probe_until = 0.0

    def failed(self, now: float) -> bool:
        """The target failed. Return True when this opened the breaker."""
        self._roll(now)
        self._bad += 1
        if self._state == "half_open":
            self._open(now, min(self._pause * 2, self._options.max_open_s))
            return True
        if self._state == "open":
            return False
        bad, good = self._bad + self._old_bad, self._good + self._old_good
        if bad >= self._options.min_failures and bad >= self._options.error_rate * (bad + good):
            self._open(now, self._options.open_s)
            return True
        return False

    def recovered(self, now: float) -> None:
        """Something else (a health check) says the target is well: let a probe through at once."""
        if self._state != "closed":
            self._open_until = min(self._open_until, now)

    def _open(self, now: float, pause: float) -> None:
        self._state = "open"
        self.closed = False
        self._pause = pause
        self._open_until = now + pause
        self._probe_until = 0.0

    def _close(self, now: float) -> None:
        self._state = "closed"
        self.closed = True
        self._good = self._bad = self._old_good = self._old_bad = 0
        self._half_started = now
        self._pause = self._options.open_s
        self._probe_until = 0.0

    def _roll(self, now: float) -> None:
        """Move to the next half window when the current one is over."""
        half = self._options.window_s / 2
        elapsed = now - self._half_started
        if elapsed < half:
            return
        if elapsed < 2 * half:
            self._old_good, self._old_bad = self._good, self._bad
        else:
            self._old_good = self._old_bad = 0
        self._good = self._bad = 0
        self._half_started = now
