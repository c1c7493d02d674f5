"""The learned estimate of a call's output: the 90th percentile of what the same tenant's calls of a model took lately.

Nearest-rank percentile over a window of the last samples; in memory, bounded, per process.
"""

from __future__ import annotations

from collections import OrderedDict, deque

_SAMPLES = 128
_FEW = 8
_REFRESH = 8
_QUANTILE = 0.9


class _Window:
    __slots__ = ("estimate", "fresh", "samples")

    def __init__(self) -> None:
        self.samples: deque[int] = deque(maxlen=_SAMPLES)
        self.estimate: int | None = None
        self.fresh = 0


class OutputEstimate:
    """Learns output tokens per tenant and model; at most ``capacity`` pairs are remembered, the least used goes."""

    def __init__(self, capacity: int = 4_096) -> None:
        self._capacity = capacity
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()

    def learn(self, tenant: str, model: str, output_tokens: int) -> None:
        """Add what a call's output was."""
        name = (tenant, model)
        window = self._windows.get(name)
        if window is None:
            window = self._windows[name] = _Window()
            if len(self._windows) > self._capacity:
                self._windows.popitem(last=False)
        window.samples.append(output_tokens)
        window.fresh += 1
        if len(window.samples) >= _FEW and (window.estimate is None or window.fresh >= _REFRESH):
            ranked = sorted(window.samples)
            window.estimate = ranked[min(len(ranked) - 1, int(_QUANTILE * len(ranked)))]
            window.fresh = 0

    def output_tokens(self, tenant: str, model: str, at_most: int) -> int:
        """Return the estimate, never above ``at_most`` (what the call may take); without samples, ``at_most``."""
        window = self._windows.get((tenant, model))
        if window is None or window.estimate is None:
            return at_most
        self._windows.move_to_end((tenant, model))
        return min(window.estimate, at_most)
