"""Many callers at once, patient or refused; prints one JSON line.

    python -m bench.crowd burst PORT --callers 1000 --body FILE --key KEY     # all send in the same moment, once
    python -m bench.crowd loop PORT --callers 1000 --calls 20000 --body FILE --key KEY   # each sends again when answered

A stream is *stalled* when nothing comes for longer than ``--patience``. A refusal is an answer of 429 or 503; it counts as
such only with ``Retry-After``. ``--pause`` is how long a caller waits after a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from pathlib import Path

import uvloop

from bench.load import Client, Totals, make_request, percentile

_REFUSALS = (429, 503)
_OPENING_AT_ONCE = 100


class Crowd(Totals):
    """What all callers have seen."""

    def __init__(self, calls: int, pause_s: float) -> None:
        super().__init__()
        self.left = calls
        self.pause_s = pause_s
        self.refused_us: list[int] = []
        self.first_refusal = ""
        self.longest_gap_s = 0.0


class Caller(Client):
    """One connection. It looks for pauses within answers, and takes a refusal as an answer."""

    def __init__(self, request: bytes, crowd: Crowd) -> None:
        super().__init__(request, crowd, None, 0)
        self.crowd = crowd
        self.last = 0.0
        self.told_to_retry = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is none by inheritance

    def begin(self) -> None:
        """Send the next call, if one is left."""
        if self.crowd.left <= 0:
            self.transport.close()
            return
        self.crowd.left -= 1
        self.last = time.perf_counter()
        self.send(self.last)

    def head(self, data: bytes) -> bytes | None:
        rest = super().head(data)
        if rest is not None:
            self.told_to_retry = b"retry-after:" in data.lower()
        return rest

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self.status:  # within an answer; the wait for its beginning is its latency
            self.crowd.longest_gap_s = max(self.crowd.longest_gap_s, now - self.last)
        self.last = now
        super().data_received(data)

    def finish(self, data: bytes) -> None:
        now = time.perf_counter()
        crowd, self.busy = self.crowd, False
        if self.status == 200:
            crowd.calls += 1
            crowd.latencies_us.append(round((now - self.since) * 1e6))
        elif self.status in _REFUSALS and self.told_to_retry:
            crowd.first_refusal = crowd.first_refusal or f"{self.status} {data[-300:]!r}"
            crowd.refused_us.append(round((now - self.since) * 1e6))
            asyncio.get_running_loop().call_later(crowd.pause_s, self.begin)
            return
        else:
            crowd.errors += 1
            crowd.first_error = crowd.first_error or f"{self.status} {data[:300]!r}"
        self.begin()


async def gather(port: int, callers: int, request: bytes, crowd: Crowd, patience_s: float) -> int:
    """Connect all, let them begin together, wait for the last; return how many were stalled."""
    loop = asyncio.get_running_loop()
    made: list[Caller] = []
    while len(made) < callers:
        opening = [
            loop.create_connection(lambda: Caller(request, crowd), "127.0.0.1", port)
            for _ in range(min(_OPENING_AT_ONCE, callers - len(made)))
        ]
        made += [caller for _, caller in await asyncio.gather(*opening)]
    for caller in made:
        caller.begin()
    waiting = {caller.done for caller in made}
    while waiting:
        _, waiting = await asyncio.wait(waiting, timeout=1)
        now = time.perf_counter()
        stalled = [caller for caller in made if caller.busy and now - caller.last > patience_s]
        if stalled:
            return len(stalled)
    return 0


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["burst", "loop"])
    parser.add_argument("port", type=int)
    parser.add_argument("--callers", type=int, default=1_000)
    parser.add_argument("--calls", type=int, default=1_000)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--key", default="none")
    parser.add_argument("--patience", type=float, default=10)
    parser.add_argument("--pause", type=float, default=0.25)
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    crowd = Crowd(given.callers if given.mode == "burst" else given.calls, given.pause)
    request = make_request(given.port, "/v1/chat/completions", given.key, given.body.read_bytes())
    began = time.perf_counter()
    stalled = uvloop.run(gather(given.port, given.callers, request, crowd, given.patience))
    took = time.perf_counter() - began
    result = {
        "calls": crowd.calls, "errors": crowd.errors, "first_error": crowd.first_error, "stalled": stalled,
        "events": crowd.events, "seconds": round(took, 3), "rps": round(crowd.calls / took, 1),
        "longest_gap_ms": round(crowd.longest_gap_s * 1e3), "refused": len(crowd.refused_us), "first_refusal": crowd.first_refusal,
    }  # fmt: skip
    for name, values in (("", crowd.latencies_us), ("ttft_", crowd.ttft_us), ("refused_", crowd.refused_us)):
        result |= {f"{name}p{share}_us": percentile(values, share / 100) for share in (50, 99)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
