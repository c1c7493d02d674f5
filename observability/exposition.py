"""Prometheus' two text formats, written by hand: 0.0.4 for whoever asks nothing, OpenMetrics 1.0 for who asks for it.

They differ in how a counter's family is named and in the last line. Sources:
https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/specs/om/open_metrics_spec/ .
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]


def wants_openmetrics(accept: str) -> bool:
    """Say whether an ``Accept`` header asks for OpenMetrics."""
    return "application/openmetrics-text" in accept


def escape(value: str) -> str:
    """Return a label's value as it stands between quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def labels_text(labels: Mapping[str, str]) -> str:
    """Return ``{a="1",b="2"}``, or nothing for no labels."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}"


def number(value: float) -> str:
    """Return a sample's value or a bound, in the form both formats share."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return repr(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


class Exposition:
    """A page of metrics being written. Families must be added whole, each once."""

    def __init__(self, openmetrics: bool) -> None:
        self._openmetrics = openmetrics
        self._lines: list[str] = []

    def _head(self, name: str, kind: Kind, explain: str) -> None:
        family = f"{name}_total" if kind == "counter" and not self._openmetrics else name
        self._lines.append(f"# TYPE {family} {kind}")
        self._lines.append(f"# HELP {family} {explain}")

    def counter(self, name: str, explain: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Add a counter; ``name`` has no ``_total``."""
        self._head(name, "counter", explain)
        self._lines += (f"{name}_total{labels_text(labels)} {number(value)}" for labels, value in samples)

    def gauge(self, name: str, explain: str, samples: Iterable[tuple[str, float]]) -> None:
        """Add a gauge; each sample's labels are already text."""
        self._head(name, "gauge", explain)
        self._lines += (f"{name}{labels} {number(value)}" for labels, value in samples)

    def histogram(
        self,
        name: str,
        explain: str,
        bounds: Sequence[float],
        samples: Iterable[tuple[Mapping[str, str], Sequence[int], float]],
    ) -> None:
        """Add a histogram of (labels, count of each bucket, sum); the last bucket is the open one."""
        self._head(name, "histogram", explain)
        for labels, counts, total in samples:
            running = 0
            for bound, count in zip((*bounds, math.inf), counts, strict=True):
                running += count
                # OpenMetrics asks for floats as bounds: 1.0, not 1.
                le = "+Inf" if math.isinf(bound) else repr(float(bound))
                self._lines.append(f"{name}_bucket{labels_text({**labels, 'le': le})} {running}")
            self._lines.append(f"{name}_sum{labels_text(labels)} {number(total)}")
            self._lines.append(f"{name}_count{labels_text(labels)} {running}")

    def text(self) -> str:
        """Return the page."""
        return "\n".join([*self._lines, "# EOF", ""]) if self._openmetrics else "\n".join([*self._lines, ""])
