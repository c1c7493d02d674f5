"""``python -m bench.lab``: fairness of the queue in virtual time, on the engine model of ``routing.sim``.

The queue, the pool and the choice of a replica are the production code, driven by a virtual clock. The cases are those of
"Fairness in Serving Large Language Models" (Sheng et al., OSDI '24), §5: prompts and answers of 256 tokens, an engine whose
memory holds 10,000 tokens. Measured is the gap: over every stretch of time in which both tenants have calls waiting, the
largest difference of service received (prompt tokens + 2 * output tokens, over weight) in any part of it. The paper's bound is 2U,
U = max(prompt, 2 * tokens the running batches hold).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from airi.config.kinds import Metadata, Pool, QueueLimits
from airi.config.kinds import Replica as Address
from routing.fair_queue import W_INPUT, W_OUTPUT, FairQueue, Ticket
from routing.pool import Place
from routing.replica import Lease
from routing.sim.engine import Engine, EngineProfile, Sequence
from routing.sim.timeline import VirtualTime
from routing.specs import pool_spec, resolve_plain_reference

TOKENS = 256
KV_TOKENS = 10_000
"""The paper's memory pool for Llama-2-7b on an A10G."""
PROFILE = EngineProfile(
    prefill_tokens_per_s=8_000,
    step_base_s=0.03,
    decode_s_per_sequence=0.000_2,
    kv_blocks=KV_TOKENS // 16,
    prefix_cache=False,
)
_ROOM = 1_000_000


@dataclass(frozen=True, slots=True)
class Client:
    """A tenant of a case: calls a second, its phases (seconds on, seconds off; 0: always on), its share."""

    name: str
    rate: float
    on_s: float = 0.0
    off_s: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """A load and how the queue handles it. ``prediction_error`` spreads predicted outputs by that share, ``policy`` names the queue."""

    name: str
    clients: tuple[Client, ...]
    seconds: float
    policy: str = "vtc"
    prediction_error: float = 0.0
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured. ``gap`` and ``bound`` (2U) are in service units; ``share`` is each tenant's part of all service while both waited."""

    case: str
    policy: str
    replicas: int
    both_waiting_s: float
    gap: float
    bound: float
    share: tuple[float, ...]
    tokens_per_s: float
    first_token_p50_s: tuple[float, ...]

    @property
    def held(self) -> bool:
        """Whether the gap stayed within the bound."""
        return self.gap <= self.bound


class Fifo(FairQueue):
    """First come, first served: what an engine's own queue does."""

    def __init__(self, place: Callable[[Ticket], bool], now: Callable[[], float], max_waiting: int) -> None:
        super().__init__(place, now, max_waiting)
        self._line: deque[Ticket] = deque()

    def submit(self, ticket: Ticket, *, front: bool = False) -> bool:
        """Stand at the end of the line."""
        self._line.append(ticket)
        self.waiting += 1
        self.pump()
        return ticket.state == "running"

    def pump(self) -> None:
        """Serve from the head of the line while there is room."""
        while self._line and self._place(self._line[0]):
            ticket = self._line.popleft()
            ticket.state = "running"
            self.waiting -= 1
            if ticket.on_ready is not None:
                ticket.on_ready()

    def progress(self, ticket: Ticket, output_tokens: int) -> None:
        """Nobody is charged."""

    def finish(self, ticket: Ticket, input_tokens: int, output_tokens: int) -> None:
        """There is room again."""
        ticket.state = "done"
        self.pump()


class Nothing:
    """Stands where an upstream's connections are in production."""

    def close(self) -> None:
        """Nothing is open."""


class Lab:
    """One run of one case."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.time = VirtualTime()
        self.random = random.Random(seed)
        pool = Pool(
            metadata=Metadata(name="lab"),
            replicas=[Address(name=f"r{number}", url=f"http://r{number}") for number in range(case.replicas)],
            tokens_per_replica=KV_TOKENS,
            concurrency_per_replica=4_096,
            queue=QueueLimits(max_waiting=_ROOM),
        )
        spec = pool_spec(pool, resolve_plain_reference)
        self.place = Place(spec, lambda *_: Nothing(), self.time.monotonic)
        if case.policy == "fcfs":
            self.place.queue = Fifo(self.place._put, self.time.monotonic, _ROOM)
        self.engines = {replica: Engine(PROFILE, self.time) for replica in self.place.replicas}
        self.served = dict.fromkeys((client.name for client in case.clients), 0.0)
        self.waiting = dict.fromkeys(self.served, 0)
        self.first: dict[str, list[float]] = {name: [] for name in self.served}
        self.tokens = 0
        self.gap = 0.0
        self.both_s = 0.0
        self._low = self._high = 0.0
        self._since: float | None = None
        self._served_before = dict(self.served)
        self._shared = dict.fromkeys(self.served, 0.0)

    def run(self) -> Result:
        """Let the case happen and return what was measured."""
        for client in self.case.clients:
            self._arrive(client, arrivals(client, self.case.seconds))
        self.time.run_until(self.case.seconds)
        self._watch(ended=True)
        total = sum(self._shared.values()) or 1.0
        return Result(
            case=self.case.name,
            policy=self.case.policy,
            replicas=self.case.replicas,
            both_waiting_s=round(self.both_s, 1),
            gap=round(self.gap),
            bound=2 * max(W_INPUT * TOKENS, W_OUTPUT * KV_TOKENS * self.case.replicas),
            share=tuple(round(value / total, 3) for value in self._shared.values()),
            tokens_per_s=round(self.tokens / self.case.seconds),
            first_token_p50_s=tuple(
                round(sorted(seen)[len(seen) // 2], 2) if seen else 0.0 for seen in self.first.values()
            ),
        )

    def _arrive(self, client: Client, times: Iterator[float]) -> None:
        at = next(times, None)
        if at is None:
            return

        def event() -> None:
            self._submit(client)
            self._arrive(client, times)

        self.time.schedule(at, event)

    def _submit(self, client: Client) -> None:
        error = self.case.prediction_error
        predicted = round(TOKENS * (1 + self.random.uniform(-error, error)))
        lease = Lease(client.name, client.weight, TOKENS, predicted, 0, [])
        arrived = self.time.monotonic()

        def ready() -> None:
            self.waiting[client.name] -= 1
            self._start(lease, client, arrived)

        if self.place.try_acquire(lease):
            self._start(lease, client, arrived)
        else:
            self.waiting[client.name] += 1
            lease.on_ready = ready
        self._watch()

    def _start(self, lease: Lease, client: Client, arrived: float) -> None:
        replica = lease.replica
        assert replica is not None
        self._serve(client, W_INPUT * TOKENS)

        def token(sequence: Sequence) -> None:
            if sequence.generated == 1:
                replica.first_byte(lease)
                self.first[client.name].append(self.time.monotonic() - arrived)
            self.tokens += 1
            self._serve(client, W_OUTPUT)
            self.place.progress(lease, sequence.generated)

        def finish(sequence: Sequence) -> None:
            self.place.release(lease, TOKENS, sequence.generated)
            self._watch()

        self.engines[replica].submit(Sequence(TOKENS, TOKENS, on_token=token, on_finish=finish))

    def _serve(self, client: Client, service: float) -> None:
        self.served[client.name] += service / client.weight
        self._watch()

    def _watch(self, *, ended: bool = False) -> None:
        """Follow the difference of service through each stretch in which both tenants wait."""
        now = self.time.monotonic()
        both = all(self.waiting.values()) and not ended
        one, two = self.served.values()
        if both and self._since is None:
            self._since = now
            self._low = self._high = one - two
            self._served_before = dict(self.served)
        elif self._since is not None:
            self._low, self._high = min(self._low, one - two), max(self._high, one - two)
            self.gap = max(self.gap, self._high - self._low)
            if not both:
                self.both_s += now - self._since
                self._since = None
                for name, value in self.served.items():
                    self._shared[name] += value - self._served_before[name]


def arrivals(client: Client, seconds: float) -> Iterator[float]:
    """Yield the client's evenly spaced arrival times (as in the paper), only in its phases."""
    at = 0.0
    while at < seconds:
        if not client.on_s or at % (client.on_s + client.off_s) < client.on_s:
            yield at
        at += 1 / client.rate


def cases(scale: float = 1.0) -> list[Case]:
    """Return the cases; ``scale`` shortens them for tests."""
    overload = (Client("a", 1.5), Client("b", 3.0))
    on_off = (Client("a", 2.0, on_s=60, off_s=60), Client("b", 3.0))
    weighted = (Client("a", 3.0), Client("b", 3.0, weight=2.0))
    twice = (Client("a", 3.0), Client("b", 6.0))
    return [
        Case("overload", overload, 360 * scale, "fcfs"),
        Case("overload", overload, 360 * scale),
        Case("overload, predictions ±50 %", overload, 360 * scale, prediction_error=0.5),
        Case("overload, weights 1:2", weighted, 360 * scale),
        Case("overload, two replicas", twice, 360 * scale, replicas=2),
        Case("on_off_overload", on_off, 600 * scale, "fcfs"),
        Case("on_off_overload", on_off, 600 * scale),
        Case("on_off_overload, predictions ±50 %", on_off, 600 * scale, prediction_error=0.5),
    ]


def measure(seed: int = 1, scale: float = 1.0) -> list[Result]:
    """Run all cases."""
    return [Lab(case, seed).run() for case in cases(scale)]


def table_of(results: list[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| case | queue | both waiting s | gap | 2U | within | share a/b | output tokens/s | first token p50 a/b s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        share = "/".join(f"{value:.2f}" for value in one.share)
        first = "/".join(f"{value:.1f}" for value in one.first_token_p50_s)
        lines.append(
            f"| {one.case} | {one.policy} | {one.both_waiting_s:.0f} | {one.gap:,.0f} | {one.bound:,.0f} "
            f"| {'yes' if one.held else 'no'} | {share} | {one.tokens_per_s:,.0f} | {first} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the JSON; 1 when the fair queue left its bound."""
    parser = argparse.ArgumentParser(prog="python -m bench.lab", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="shorten the cases (0.2: a fifth)")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    options = parser.parse_args(arguments)
    results = measure(options.seed, options.scale)
    if not options.json:
        print("Simulated engine, virtual time; the queue, the pool and the choice are the production code.\n")
        print(table_of(results) + "\n")
    print(json.dumps([{**asdict(one), "held": one.held} for one in results]))
    return 0 if all(one.held for one in results if one.policy != "fcfs") else 1


if __name__ == "__main__":
    sys.exit(main())
