"""Counters and histograms made from records as they are written, in the writer; nothing is counted on the hot path.

Cardinality is bounded: a family that has reached its limit counts further label sets under ``other``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from observability.dayfile import Written
from observability.exposition import Exposition, labels_text
from observability.histogram import BOUNDS_US, BUCKETS, bucket
from observability.live import LiveTable
from observability.record import CallRecord, SpanRecord

_BOUNDS_S = tuple(us / 1_000_000 for us in BOUNDS_US)
_GAUGE = re.compile(r"(?P<name>[a-z_][a-z0-9_]*)(?:\{(?P<labels>[^{}\n]*)\})?")
_MOST_SERIES = 2_000
_OTHER = "other"

_Key = tuple[str, ...]


class Counters:
    """One counter family: a number for each set of label values."""

    def __init__(self, name: str, explain: str, labels: tuple[str, ...]) -> None:
        self.name, self.explain, self.labels = name, explain, labels
        self._values: dict[_Key, float] = {}

    def add(self, amount: float, *values: str) -> None:
        """Count ``amount`` for a set of label values, in the order of ``labels``."""
        if values not in self._values and len(self._values) >= _MOST_SERIES:
            values = (_OTHER,) * len(self.labels)
        self._values[values] = self._values.get(values, 0) + amount

    def samples(self) -> Iterator[tuple[Mapping[str, str], float]]:
        """Yield each label set with its number."""
        for values, amount in self._values.items():
            yield dict(zip(self.labels, values, strict=True)), amount


class Histograms:
    """One histogram family over :data:`observability.histogram.BOUNDS_US`."""

    def __init__(self, name: str, explain: str, labels: tuple[str, ...]) -> None:
        self.name, self.explain, self.labels = name, explain, labels
        self._counts: dict[_Key, list[int]] = {}
        self._sums_us: dict[_Key, int] = defaultdict(int)

    def observe(self, us: int, *values: str) -> None:
        """Count a duration for a set of label values."""
        counts = self._counts.get(values)
        if counts is None:
            if len(self._counts) >= _MOST_SERIES // 10:
                values = (_OTHER,) * len(self.labels)
            counts = self._counts.setdefault(values, [0] * BUCKETS)
        counts[bucket(us)] += 1
        self._sums_us[values] += us

    def samples(self) -> Iterator[tuple[Mapping[str, str], list[int], float]]:
        """Yield each label set with its buckets and its sum in seconds."""
        for values, counts in self._counts.items():
            yield dict(zip(self.labels, values, strict=True)), counts, self._sums_us[values] / 1_000_000


class Metrics:
    """Everything derived from records since the writer started."""

    def __init__(self) -> None:
        place = ("model", "target", "simulated")
        self.calls = Counters("airi_calls", "Finished calls.", ("tenant", *place, "status"))
        self.tokens = Counters("airi_tokens", "Tokens of finished calls.", ("tenant", "model", "type"))
        self.cost = Counters("airi_cost_usd", "Cost of finished calls, US dollars.", ("tenant", "model"))
        self.duration = Histograms("airi_call_duration_seconds", "From request to last byte.", place)
        self.ttft = Histograms(
            "airi_time_to_first_token_seconds", "From request to first visible byte.", place
        )
        self.attempts = Counters("airi_attempts", "Tries at a target.", ("target", "outcome"))
        self.policy_hits = Counters(
            "airi_policy_hits", "Calls that a policy denied, redacted or rerouted.", ("tenant", "policy")
        )
        self.detections = Counters("airi_detections", "What detectors found.", ("class",))
        self.steps = Counters("airi_run_spans", "Finished pieces of runs.", ("workflow", "kind", "state"))
        self.step_duration = Histograms(
            "airi_run_span_duration_seconds", "Time a piece of a run took.", ("workflow", "kind")
        )
        self.lag_seconds = 0.0
        """Worst time from a record's end to its commit in the last transaction."""

    def observe(self, written: Written, now_ns: int) -> None:
        """Count what a transaction added."""
        for call in written.calls:
            self._observe_call(call)
        for span in written.spans:
            self._observe_span(span)
        if written.calls:
            self.lag_seconds = max(
                0.0, max(now_ns - c.started_unix_ns - c.duration_us * 1_000 for c in written.calls) / 1e9
            )

    def _observe_call(self, call: CallRecord) -> None:
        model = call.alias or _OTHER  # what no alias stands for was the caller's own text: unbounded
        simulated = "true" if call.simulated else "false"
        self.calls.add(1, call.tenant, model, call.target, simulated, str(call.status))
        self.duration.observe(call.duration_us, model, call.target, simulated)
        if call.ttft_us:
            self.ttft.observe(call.ttft_us, model, call.target, simulated)
        for kind, count in (
            ("input", call.input_tokens),
            ("output", call.output_tokens),
            ("cached", call.cached_tokens),
            ("reasoning", call.reasoning_tokens),
        ):
            if count > 0:
                self.tokens.add(count, call.tenant, model, kind)
        if call.cost_usd_micros > 0:
            self.cost.add(call.cost_usd_micros / 1_000_000, call.tenant, model)
        for attempt in call.attempts:
            self.attempts.add(1, attempt.target, attempt.outcome)
        if call.policy_hit:
            self.policy_hits.add(1, call.tenant, call.policy_hit)
        for name, count in call.detections.items():
            self.detections.add(max(count, 0), name)

    def _observe_span(self, span: SpanRecord) -> None:
        self.steps.add(1, span.workflow, span.kind, span.state)
        self.step_duration.observe(span.duration_us, span.workflow, span.kind)

    def write(self, page: Exposition) -> None:
        """Add every family to a page."""
        for counters in (
            self.calls, self.tokens, self.cost, self.attempts, self.policy_hits, self.detections, self.steps,
        ):  # fmt: skip
            page.counter(counters.name, counters.explain, counters.samples())
        for histograms in (self.duration, self.ttft, self.step_duration):
            page.histogram(histograms.name, histograms.explain, _BOUNDS_S, histograms.samples())
        page.gauge(
            "airi_record_lag_seconds", "Worst lag of the last records written.", [("", self.lag_seconds)]
        )


def write_processes(page: Exposition, live: LiveTable, own: tuple[str, int, Mapping[str, float]]) -> None:
    """Add the gauges of every connected process and of the writer itself (name, pid, gauges)."""
    families: dict[str, list[tuple[str, float]]] = defaultdict(list)
    sources = [own]
    for peer, stale in live.peers():
        if not stale:
            gauges: dict[str, float] = {
                **peer.pulse.gauges,
                "live_calls": len(peer.pulse.live) + peer.pulse.live_cut,
            }
            sources.append((peer.hello.process, peer.hello.pid, gauges))
    for process, pid, values in sources:
        base = labels_text({"process": process, "pid": str(pid)})
        for key, value in values.items():
            match = _GAUGE.fullmatch(key)
            if match is not None:
                labels = f"{base[:-1]},{match['labels']}}}" if match["labels"] else base
                families[f"airi_{match['name']}"].append((labels, value))
    for name in sorted(families):
        page.gauge(name, f"{name[5:].replace('_', ' ').capitalize()}, as each process says.", families[name])
