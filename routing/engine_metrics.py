"""Reading the few numbers the router needs from an engine's Prometheus text.

The text of a busy engine has thousands of lines, mostly histogram buckets; it is searched for the names that matter
instead of being parsed (tens of microseconds on the event loop instead of tens of milliseconds).
"""

from __future__ import annotations

from dataclasses import dataclass

_RUNNING = b"vllm:num_requests_running"
_WAITING = b"vllm:num_requests_waiting"
_KV_USAGE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")
_QUERIES = b"vllm:prefix_cache_queries_total"
_STARTED = b"process_start_time_seconds"
_CACHE_CONFIG = b"vllm:cache_config_info"


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine says of itself. ``kv_tokens`` is its whole KV cache, 0 when not told; ``started`` its start time."""

    running: int
    waiting: int
    kv_usage: float
    queries: float
    started: float
    kv_tokens: int


def parse_vllm(text: bytes) -> EngineLoad | None:
    """Return the load of a vLLM engine (or the simulator, which uses its names); ``None`` when it is not in the text."""
    text = b"\n" + text
    running = _sum(text, _RUNNING)
    if running is None:
        return None
    usage = next((value for name in _KV_USAGE if (value := _sum(text, name)) is not None), 0.0)
    return EngineLoad(
        running=int(running),
        waiting=int(_sum(text, _WAITING) or 0),
        kv_usage=usage,
        queries=_sum(text, _QUERIES) or 0.0,
        started=_sum(text, _STARTED) or 0.0,
        kv_tokens=_kv_tokens(text),
    )


def _sum(text: bytes, name: bytes) -> float | None:
    """Return the sum over all label sets of a metric, or ``None`` when there is none."""
    total: float | None = None
    at = text.find(b"\n" + name)
    while at >= 0:
        end = text.find(b"\n", at + 1)
        line = text[at + 1 : end if end >= 0 else len(text)]
        if line[len(name) : len(name) + 1] in (b" ", b"{"):
            value = _value(line)
            if value is not None:
                total = (total or 0.0) + value
        at = text.find(b"\n" + name, at + 1)
    return total


def _value(line: bytes) -> float | None:
    """Return the value of a sample line; a time stamp after it is ignored, NaN counts as absent."""
    words = line[line.rfind(b"}") + 1 :].split() if b"}" in line else line.split()[1:]
    try:
        value = float(words[0])
    except (IndexError, ValueError):
        return None
    return value if value == value else None  # only NaN differs from itself


def _kv_tokens(text: bytes) -> int:
    """Return ``num_gpu_blocks * block_size`` from the labels of the cache's description."""
    at = text.find(b"\n" + _CACHE_CONFIG)
    if at < 0:
        return 0
    end = text.find(b"\n", at + 1)
    line = text[at : end if end >= 0 else len(text)]
    return _label(line, b"num_gpu_blocks") * _label(line, b"block_size")


def _label(line: bytes, name: bytes) -> int:
    """Return a label's whole number, or 0."""
    start = max(line.find(b"{" + name + b'="'), line.find(b"," + name + b'="'))
    if start < 0:
        return 0
    start += len(name) + 3
    digits = line[start : line.find(b'"', start)]
    return int(digits) if digits.isdigit() else 0
