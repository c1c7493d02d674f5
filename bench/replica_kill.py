"""``python -m bench.replica_kill``: a replica is killed with -9 under 100 calls in flight; callers must see no error before the
first byte.

Real processes of the simulated engine, the production router with its health checks, half of the calls streamed. Streams
that had begun on the dead replica break, as they must (nothing is ever spliced); they are counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from airi.config.document import ConfigDocument
from airi.config.kinds import Metadata, Model, ModelVersion, Pool, Replica, Target
from airi.errors import AiriError
from routing.call import Call
from routing.payload import Payload
from routing.prices import PriceMap
from routing.registry import RoutingTable
from routing.router import Router

MODEL = "sim/small"
_READY_S = 30.0
_TOKENS = 400
_LATER_S = 0.15
"""Each round kills this much later: first nobody has seen a byte, later half of the streams run."""


@dataclass
class Outcome:
    """What happened. ``errors_before_first_byte`` must be 0."""

    calls: int = 0
    in_flight_at_kill: int = 0
    on_victim_at_kill: int = 0
    answered: int = 0
    retried: int = 0
    streams_broken_after_first_byte: int = 0
    errors_before_first_byte: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


async def start_replica(name: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a simulated engine in a process of its own; return it and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "routing.sim", "--port", "0", "--name", name, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), _READY_S)
    return process, f"http://127.0.0.1:{int(line)}"


def document(urls: list[str]) -> ConfigDocument:
    """Return a configuration with one pool of these replicas."""
    replicas = [Replica(name=f"r{number}", url=url) for number, url in enumerate(urls)]
    pool = Pool(metadata=Metadata(name="sim"), engine="sim", replicas=replicas)
    version = ModelVersion(name="v1", targets=[Target(pool="sim", model=MODEL)])
    return ConfigDocument.of([pool, Model(metadata=Metadata(name="m"), versions=[version])])


async def one_call(
    router: Router, table: RoutingTable, number: int, outcome: Outcome, errors: Counter[str]
) -> None:
    """Make one call as the gateway would, and judge it."""
    stream = number % 2 == 0
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"call {number}"}],
        "max_tokens": _TOKENS,
        "min_tokens": _TOKENS,
        "stream": stream,
    }
    call = Call(
        table.resolve("m"),
        f"tenant-{number % 4}",
        Payload(body),
        stream=stream,
        input_tokens=20,
        predicted_output_tokens=_TOKENS,
    )
    try:
        answer = await router.send(call)
    except AiriError as error:
        outcome.errors_before_first_byte += 1
        errors[error.code] += 1
        return
    outcome.retried += len(answer.attempts) > 1
    try:
        if answer.status != 200:
            outcome.errors_before_first_byte += 1
            errors[f"status {answer.status}"] += 1
            return
        while stream and await answer.next_block() is not None:
            pass
        outcome.answered += 1
    except AiriError:
        outcome.streams_broken_after_first_byte += 1
    finally:
        answer.close(_TOKENS)


async def run(calls: int, replicas: int, delay_s: float) -> Outcome:
    """Start the replicas, put the calls in flight, kill one replica ``delay_s`` later, wait for every call."""
    started = [await start_replica(f"kill-{number}") for number in range(replicas)]
    processes = [process for process, _ in started]
    table = RoutingTable.build(document([url for _, url in started]), PriceMap({}))
    router = Router()
    outcome, errors = Outcome(calls=calls), Counter[str]()
    begun = time.monotonic()
    try:
        await router.apply(table)
        victim = router.fleet.places["pool:sim"].replicas[0]
        tasks = [
            asyncio.create_task(one_call(router, table, number, outcome, errors)) for number in range(calls)
        ]
        while victim.in_flight_calls < calls // (replicas + 1) and not all(task.done() for task in tasks):
            await asyncio.sleep(0.002)
        await asyncio.sleep(delay_s)
        outcome.in_flight_at_kill = sum(not task.done() for task in tasks)
        outcome.on_victim_at_kill = victim.in_flight_calls
        processes[0].send_signal(signal.SIGKILL)
        await asyncio.gather(*tasks)
    finally:
        await router.close()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
    outcome.errors = dict(errors)
    outcome.seconds = round(time.monotonic() - begun, 2)
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """Print the outcome of each round as JSON; 1 when a caller saw an error before the first byte."""
    parser = argparse.ArgumentParser(prog="python -m bench.replica_kill", description=__doc__)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ.setdefault("AIRI_SIM_SPEED", "1")
    failed = 0
    for number in range(options.rounds):
        outcome = asyncio.run(run(options.calls, options.replicas, number * _LATER_S))
        failed += outcome.errors_before_first_byte
        print(json.dumps(asdict(outcome)))
    print(f"errors before the first byte: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
