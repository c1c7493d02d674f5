"""The section ``peers`` of ``make bench-peers``: AIRI and other gateways in the same rounds.

    python -m bench.run_peers [--rounds 3] [--seconds 2.5]

For CPU every gateway has one core, the mock upstream, the load generator and Redis the other; for latency nothing is pinned. Rounds are
interleaved, so that a slow minute of the machine is everybody's. A peer that fails is named with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.calls import CONNECTIONS, GATEWAY_CORE, OTHER_CORE, Bench, Figures, bench, body, load, unpinned
from bench.peers import PEERS, Running, running, version

SLOW, FAST = 50, 1_000
"""Calls a second: what every gateway here can do, and what a fast one can."""
EVERYWHERE = frozenset({GATEWAY_CORE, OTHER_CORE})
_HEADROOM = 1.3
"""A rate is measured only where saturation is so much above it: beyond it a queue is measured, not a gateway."""
_AIRI = "key, limits at five scopes in Redis, ten policies, route, prices, usage, one settlement and one record for each call"
_BARE = "AIRI's HTTP server and client alone"


@dataclass
class Contest:
    """Who takes part and what was measured of each."""

    subject: Bench
    members: list[Running]
    figures: dict[str, Figures] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, figure: str, value: float) -> None:
        self.figures.setdefault(name, Figures()).add(figure, value)

    def warm_up(self, member: Running) -> None:
        """A second that does not count: compilers, pools and caches of all kinds get their turn."""
        self._count(member, _load("closed", member, self.subject.file("peers-body", body(228)), 1))

    def closed(self, member: Running, figure: str, data: bytes, seconds: float, *, per: str) -> None:
        """CPU per call or per chunk at saturation."""
        path = self.subject.file("peers-body", data)
        before = member.cpu_s()
        result = _load("closed", member, path, seconds)
        self._count(member, result)
        self.add(member.name, figure, (member.cpu_s() - before) / result[per] * 1e6)
        if per == "calls":
            self.add(member.name, f"rps_{figure}", result["rps"])

    def rate(self, member: Running, rate: int, seconds: float, direct_us: float) -> None:
        """Added median latency at a fixed rate; nothing is pinned here, as people run it."""
        if self._saturation(member) < rate * _HEADROOM:
            return
        path = self.subject.file("peers-body", body(228))
        result = _load("open", member, path, seconds, cores=EVERYWHERE, rate=rate)
        self._count(member, result)
        self.add(member.name, f"added_p50_us_{rate}", result["p50_us"] - direct_us)

    def direct(self, rate: int, seconds: float) -> float:
        """Median latency of the mock, asked without a gateway."""
        path = self.subject.file("peers-body", body(228))
        result = load(
            "open",
            self.subject.upstream,
            path,
            "none",
            seconds,
            cores=EVERYWHERE,
            rate=rate,
            connections=CONNECTIONS,
        )
        self.add("direct", f"p50_us_{rate}", result["p50_us"])
        return float(result["p50_us"])

    def _saturation(self, member: Running) -> float:
        return self.figures[member.name].medians()["rps_unary_228"]

    def _count(self, member: Running, result: dict[str, float]) -> None:
        if member.name == "AIRI":
            self.subject.counted += int(result["calls"])

    def every(self, measure: object, *arguments: object, **named: object) -> None:
        """Measure each member in turn; one that fails leaves, with its reason."""
        for member in list(self.members):
            try:
                measure(member, *arguments, **named)  # type: ignore[operator]
            except Exception as error:
                # Whatever a peer does wrong must not end the others' measurement; AIRI's own fault does.
                if member.name in ("AIRI", "bare forwarder"):
                    raise
                self.members.remove(member)
                self.failed[member.name] = f"{error}"[:300]

    def round(self, seconds: float) -> None:
        """One round: each figure of each member."""
        self.every(self.closed, "unary_228", body(228), seconds, per="calls")
        self.every(self.closed, "unary_10k", body(10_000), seconds, per="calls")
        self.every(self.closed, "chunk", body(228, stream=True), seconds, per="events")
        with unpinned(self.subject.live, self.subject.upstream_process.popen.pid, *self._pids()):
            for rate in (SLOW, FAST):
                self.every(self.rate, rate, seconds, self.direct(rate, seconds))

    def _pids(self) -> list[int]:
        """Return every process of the others that still runs."""
        own = [process for member in self.members if member.name != "AIRI" for process in member.processes]
        return [process.pid for process in own if process.is_running()]


def _load(
    mode: str,
    member: Running,
    path: Path,
    seconds: float,
    cores: frozenset[int] = frozenset({OTHER_CORE}),
    **options: float,
) -> dict[str, float]:
    options["connections"] = CONNECTIONS
    return load(mode, member.port, path, member.key, seconds, member.headers, cores, **options)


def _starting(contest: Contest, cache: Path, stack: contextlib.ExitStack) -> dict[str, str]:
    """Start every peer that is installed; return their versions."""
    versions: dict[str, str] = {}
    for peer in PEERS:
        try:
            versions[peer.name] = version(peer, cache)
            started = stack.enter_context(
                running(peer, cache, contest.subject.upstream, contest.subject.folder)
            )
        except (OSError, AssertionError) as error:
            contest.failed[peer.name] = f"{error}"[:300]
        else:
            contest.members.append(started)
    return versions


def run(rounds: int, seconds: float, cache: Path) -> dict[str, object]:
    """Measure and return everything."""
    with (
        tempfile.TemporaryDirectory(prefix="airi-peers-") as folder,
        bench(Path(folder)) as subject,
        contextlib.ExitStack() as stack,
    ):
        bare = Running(
            "bare forwarder", subject.bare, "none", [psutil.Process(subject.bare_process.popen.pid)]
        )
        contest = Contest(subject, [bare, Running("AIRI", subject.live.port, subject.key, subject.gateways)])
        versions = _starting(contest, cache, stack)
        for member in contest.members:
            contest.add(member.name, "idle_mb", member.megabytes())
        contest.every(contest.warm_up)
        for _ in range(rounds):
            contest.round(seconds)
        for member in contest.members:
            contest.add(member.name, "loaded_mb", member.megabytes())
        checked = subject.verify()
    return {
        "figures": {name: figures.medians() for name, figures in contest.figures.items()},
        "versions": versions, "failed": contest.failed, "checked": checked, "rounds": rounds, "seconds": seconds,
    }  # fmt: skip


def _cell(own: dict[str, float], key: str, absent: str) -> str:
    return f"{own[key]:,.0f}" if key in own else absent


def table(result: dict[str, object]) -> str:
    """Return the figures as Markdown, and under them what each gateway does with a call."""
    figures, versions = result["figures"], result["versions"]
    assert isinstance(figures, dict)
    assert isinstance(versions, dict)
    lines = [
        f"| gateway | µs CPU, 228 B | µs CPU, 10 kB | µs CPU a chunk | calls/s, 228 B | added p50 µs at {SLOW}/s | at {FAST:,}/s | MB idle / loaded |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in figures.items():
        if name == "direct":
            continue
        cells = [_cell(own, key, "–") for key in ("unary_228", "unary_10k", "chunk", "rps_unary_228")]
        cells += [_cell(own, f"added_p50_us_{rate}", "saturated") for rate in (SLOW, FAST)]
        cells.append(f"{_cell(own, 'idle_mb', '–')} / {_cell(own, 'loaded_mb', '–')}")
        lines.append(f"| {name} {versions.get(name, '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(result: dict[str, object]) -> str:
    """Return what each does with a call, and who could not be measured."""
    failed, checked = result["failed"], result["checked"]
    assert isinstance(failed, dict)
    assert isinstance(checked, dict)
    lines = [f"bare forwarder: {_BARE}.", f"AIRI: {_AIRI}."]
    lines += [f"{peer.name}: {peer.does}." for peer in PEERS]
    lines += [f"not measured: {name}: {' '.join(reason.split())}" for name, reason in failed.items()]
    lines.append("AIRI, checked: " + ", ".join(f"{name} {value:,}" for name, value in checked.items()))
    return "\n".join(lines)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5)
    arguments = parser.parse_args()
    began = time.monotonic()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airi"
    cache = Path(os.environ.get("AIRI_CACHE") or home) / "peers"
    result = run(arguments.rounds, arguments.seconds, cache)
    result["took_s"] = round(time.monotonic() - began)
    print(table(result))
    print(notes(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
