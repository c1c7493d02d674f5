"""Where a call's microseconds go: CPU of each stage of the pipeline without sockets, the best of many slices.

    python -m bench.stages

Redis and the upstream are replaced by answers that are there at once; everything else is the real code on a real
snapshot. The rest of a call's cost is the HTTP server and client (bench/bare_forwarder.py) and the kernel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from airi.config.document import ConfigDocument
from airi.config.loader import load_text
from airi.http.server import Request
from airi.keys import KeyMap
from airi.keys.keymap import Digester
from airi.keys.record import KeyLimits, KeyRecord
from bench.calls import body, config
from gateway.exchange import Exchange
from gateway.operations import CHAT
from gateway.pipeline import Pipeline
from gateway.snapshot import Snapshot
from gateway.stages.admit import admit
from gateway.stages.authenticate import authenticate
from gateway.stages.deliver import deliver
from gateway.stages.prompt import apply_prompt_policies
from gateway.stages.record import make_record
from gateway.stages.route import route
from gateway.stages.settle import settle
from gateway.stages.understand import understand
from observability.emitter import Emitter
from policies.admission import Admitted, Rate
from policies.admission.estimate import OutputEstimate

TOKEN = "airi_bench_" + "0" * 48
PEPPER = b"p" * 32
WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"mock","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"This is the answer of a mock upstream, forty-two characters or more."},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":40,"completion_tokens":16,"total_tokens":56}}'
)


class _Admission:
    """Admits at once."""

    def __init__(self) -> None:
        self.estimate = OutputEstimate()

    async def reserve(self, request: Any) -> Admitted:
        rate = Rate(50_000_000, 49_999_999, 1)
        return Admitted(request.reservation_id, request.output_tokens, 100, 1, 1, rate, rate)

    def settle(self, settlement: Any) -> None:
        """Forget it."""


class _Answer:
    """What the router returns, there at once."""

    status = 200
    target = "mock"
    version = "plain@v1"
    model = "mock"
    simulated = False
    attempts: ClassVar[list[Any]] = []
    explanation: ClassVar[dict[str, Any]] = {"target": "mock", "candidates": [], "rejected": []}
    headers: ClassVar[list[tuple[bytes, bytes]]] = [(b"content-type", b"application/json")]

    def __init__(self, price: Any) -> None:
        self.price = price

    async def read(self) -> bytes:
        return WHOLE

    def close(self, *_: Any, **__: Any) -> None:
        """Nothing is leased."""


class _Router:
    async def send(self, call: Any) -> _Answer:
        call.payload.encode("mock", call.overrides, ())
        return _Answer(call.route.price)


def make_runtime() -> Any:
    """Return a runtime with a real snapshot and nothing outside of this process."""
    resources = [item.resource for item in load_text(config(1))]
    resolver = SimpleNamespace(resolve=None)
    snapshot = Snapshot.build(ConfigDocument.of(resources, 1), resolver, Path("/none"))  # type: ignore[arg-type]
    keys = KeyMap(PEPPER)
    limits = KeyLimits(50_000_000, 2_000_000_000, 100_000)
    keys.apply(
        [
            (
                1,
                KeyRecord(
                    id="bench", tenant="bench", team="bench", digest=Digester(PEPPER)(TOKEN), limits=limits
                ),
            )
        ]
    )
    return SimpleNamespace(
        process="bench", snapshot=snapshot, keys=keys, keyring=None, watcher=SimpleNamespace(seen=lambda *_: None),
        admission=_Admission(), router=_Router(), emitter=Emitter(Path("/none"), "bench"), content=None,
        max_in_flight=10, in_flight={}, draining=False,
    )  # fmt: skip


def make_request(data: bytes) -> Request:
    """Return a request as the server hands it over; answers go nowhere."""
    headers = [
        (b"host", b"127.0.0.1:4000"), (b"authorization", b"Bearer " + TOKEN.encode()),
        (b"content-type", b"application/json"), (b"content-length", b"%d" % len(data)),
    ]  # fmt: skip
    connection: Any = SimpleNamespace(transport=None)
    return Request(
        connection, "POST", "/v1/chat/completions", b"", headers, dict(headers), data, "127.0.0.1", True, True
    )


def drive(coroutine: Any) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a stage waited")


def best(work: Callable[[], object], repeat: int = 200, rounds: int = 40) -> float:
    """Return the least CPU of a run in microseconds."""
    least = float("inf")
    for _ in range(rounds):
        since = time.process_time_ns()
        for _ in range(repeat):
            work()
        least = min(least, (time.process_time_ns() - since) / repeat / 1_000)
    return least


def _record(exchange: Exchange) -> None:
    exchange.mark("end")
    make_record(exchange, "bench")


def measure(size: int) -> dict[str, float]:
    """Return the CPU of each stage, cumulative differences of walking ever further, in microseconds."""
    runtime, data = make_runtime(), body(size)
    stages: list[tuple[str, Callable[[Exchange], Any]]] = [
        ("authenticate", lambda x: drive(authenticate(runtime, x))),
        ("understand", understand),
        ("admit", lambda x: drive(admit(runtime, x))),
        ("prompt", apply_prompt_policies),
        ("route", lambda x: drive(route(runtime, x))),
        ("deliver", lambda x: drive(deliver(runtime, x))),
        ("settle", lambda x: settle(runtime, x)),
        ("record", _record),
    ]
    request = make_request(data)
    figures: dict[str, float] = {}
    before = best(lambda: Exchange(request, CHAT, runtime.snapshot))
    figures["exchange"] = before

    def walk(count: int) -> None:
        request.started = False
        exchange = Exchange(request, CHAT, runtime.snapshot)
        for _, stage in stages[:count]:
            stage(exchange)

    for number, (name, _) in enumerate(stages, 1):
        total = best(lambda number=number: walk(number))  # type: ignore[misc]
        figures[name] = total - before
        before = total
    pipeline = Pipeline(runtime)

    def whole() -> None:
        request.started = False
        drive(pipeline.run(request, CHAT))
        runtime.emitter._pending.clear()
        runtime.emitter._held = 0

    figures["all"] = best(whole)
    return figures


def main() -> None:
    """Print the table."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    small, large = measure(228), measure(10_000)
    print(f"{'stage':<14}{'228 B':>9}{'10 kB':>9}   µs of CPU")
    for name in small:
        print(f"{name:<14}{small[name]:>9.1f}{large[name]:>9.1f}")


if __name__ == "__main__":
    main()
