"""What ``GET /metrics`` says, under vLLM's names."""

from __future__ import annotations

from bisect import bisect_left

from routing.sim.engine import Engine, Sequence

_FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
)
_BETWEEN_TOKENS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
)
_WHOLE = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0)


class Histogram:
    """Cumulative buckets in seconds."""

    __slots__ = ("_bounds", "_counts", "name", "total")

    def __init__(self, name: str, bounds: tuple[float, ...]) -> None:
        self.name = name
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count a value, ``times`` over."""
        self._counts[bisect_left(self._bounds, seconds)] += times
        self.total += seconds * times

    def lines(self, labels: str) -> list[str]:
        """Return the exposition lines."""
        result, seen = [], 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            seen += count
            result.append(f'{self.name}_bucket{{{labels},le="{bound}"}} {seen}')
        return [
            *result,
            f"{self.name}_count{{{labels}}} {seen}",
            f"{self.name}_sum{{{labels}}} {self.total:.6f}",
        ]


class ModelMetrics:
    """The histograms and outcomes of one model's engine."""

    def __init__(self, model: str, engine: Engine) -> None:
        self._engine = engine
        self._labels = f'engine="0",model_name="{model}"'
        self._first = Histogram("vllm:time_to_first_token_seconds", _FIRST_TOKEN)
        self._between = Histogram("vllm:inter_token_latency_seconds", _BETWEEN_TOKENS)
        self._queue = Histogram("vllm:request_queue_time_seconds", _WHOLE)
        self._whole = Histogram("vllm:e2e_request_latency_seconds", _WHOLE)
        self._finished: dict[str, int] = {}

    def finished(self, sequence: Sequence, reason: str) -> None:
        """Count a sequence that came to its end (``stop``, ``length``, ``abort``)."""
        self._finished[reason] = self._finished.get(reason, 0) + 1
        arrived, admitted = sequence.arrived_at, sequence.admitted_at
        if arrived is None or admitted is None or sequence.finished_at is None:
            return
        self._queue.observe(admitted - arrived)
        self._whole.observe(sequence.finished_at - arrived)
        first, last, gaps = sequence.first_token_at, sequence.last_token_at, sequence.generated - 1
        if first is not None and last is not None:
            self._first.observe(first - arrived)
            if gaps > 0:
                # A sequence's mean stands for each of its gaps: one observation a request, none a token.
                self._between.observe((last - first) / gaps, gaps)

    def samples(self) -> dict[str, tuple[str, list[str]]]:
        """Return metric name → (type, lines)."""
        engine, labels, counters = self._engine, self._labels, self._engine.counters
        profile = engine.profile
        gauges = {
            "vllm:num_requests_running": engine.running,
            "vllm:num_requests_waiting": engine.waiting,
            "vllm:kv_cache_usage_perc": round(engine.kv_usage, 6),
        }
        totals = {
            "vllm:prefix_cache_queries": counters.cache_queries,
            "vllm:prefix_cache_hits": counters.cache_hits,
            "vllm:num_preemptions": counters.preemptions,
            "vllm:prompt_tokens": counters.prompt_tokens,
            "vllm:generation_tokens": counters.generated_tokens,
        }
        config = f'{labels},block_size="{profile.block_tokens}",num_gpu_blocks="{profile.kv_blocks}"'
        lora = 'max_lora="0",running_lora_adapters="",waiting_lora_adapters=""'
        result = {name: ("gauge", [f"{name}{{{labels}}} {value}"]) for name, value in gauges.items()}
        result |= {name: ("counter", [f"{name}_total{{{labels}}} {value}"]) for name, value in totals.items()}
        result["vllm:request_success"] = (
            "counter",
            [
                f'vllm:request_success_total{{{labels},finished_reason="{r}"}} {n}'
                for r, n in self._finished.items()
            ],
        )
        result["vllm:cache_config_info"] = ("gauge", [f"vllm:cache_config_info{{{config}}} 1.0"])
        result["vllm:lora_requests_info"] = ("gauge", [f"vllm:lora_requests_info{{{lora}}} 1.0"])
        for histogram in (self._first, self._between, self._queue, self._whole):
            result[histogram.name] = ("histogram", histogram.lines(labels))
        return result


def exposition(models: list[ModelMetrics]) -> bytes:
    """Return Prometheus' text format for all models of a replica."""
    merged: dict[str, tuple[str, list[str]]] = {}
    for model in models:
        for name, (kind, lines) in model.samples().items():
            known = merged.setdefault(name, (kind, []))[1]
            known += [line for line in lines if line not in known]
    text = [line for name, (kind, lines) in merged.items() for line in (f"# TYPE {name} {kind}", *lines)]
    return ("\n".join(text) + "\n").encode()
