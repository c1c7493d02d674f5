"""Keeping long work off others' way: a thread that computes steps back after every slice.

Python's threads share one interpreter. A thread that computes without pause lets the event loop in only once per
switch interval (5 ms), so that every call would wait; one that sleeps between slices leaves the loop the time it needs.
"""

from __future__ import annotations

import time

SLICE_S = 0.001
REST_S = 0.001


class Pace:
    """Call it between the pieces of a long work: it sleeps whenever a slice of ``slice_s`` is used up."""

    __slots__ = ("_rest_s", "_since", "_slice_s")

    def __init__(self, slice_s: float = SLICE_S, rest_s: float = REST_S) -> None:
        self._slice_s = slice_s
        self._rest_s = rest_s
        self._since = time.perf_counter()

    def __call__(self) -> None:
        """Rest if it is time; blocking, so never on an event loop."""
        if time.perf_counter() - self._since >= self._slice_s:
            time.sleep(self._rest_s)
            self._since = time.perf_counter()
