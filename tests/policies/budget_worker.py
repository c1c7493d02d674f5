"""A gateway process' worth of callers on one hard budget: ``python -m tests.policies.budget_worker URL NAME CALLERS SEED``.

Writes one line for each call that it was allowed to send (``sent ID WORST``) and for each that ended (``cost ID USD``),
before it says so to admission; runs until it is told ``stop`` on standard input, or is killed.
"""

from __future__ import annotations

import asyncio
import sys
from random import Random

from airi.redis_pipeline import PipelinedRedis
from policies.admission import SCRIPTS, Admission, AdmissionOptions, Admitted, Settlement
from tests.policies import kit

BUDGET = {
    "budgets": [{"name": "hard", "usd": 0.3}],
    "limits": {"concurrent_calls": 90, "tokens_per_minute": 10_000_000},
}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def caller(service: Admission, random: Random, stop: asyncio.Event) -> None:
    of = kit.scopes(BUDGET)
    while not stop.is_set():
        task = asyncio.create_task(
            service.reserve(kit.money(of, output=random.choice((50, 400)), lease_ms=2_000))
        )
        if random.random() < 0.1:  # the client leaves while it waits
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            continue
        answer = await task
        if not isinstance(answer, Admitted):
            await asyncio.sleep(random.random() * 0.05)
            continue
        say(f"sent {answer.reservation_id} {answer.hold_usd_micros}")
        await asyncio.sleep(random.random() * 0.02)
        cost = random.randint(0, answer.hold_usd_micros)
        say(f"cost {answer.reservation_id} {cost}")
        service.settle(Settlement(reservation_id=answer.reservation_id, usd_micros=cost))


async def main(url: str, name: str, callers: int, seed: int) -> None:
    stop = asyncio.Event()
    connection = PipelinedRedis(url, SCRIPTS.all())
    await connection.connect()
    service = Admission(connection, name, AdmissionOptions(beat_ms=200))
    await service.start()
    tasks = [asyncio.create_task(caller(service, Random(seed * 1_000 + i), stop)) for i in range(callers)]
    await asyncio.to_thread(sys.stdin.readline)
    stop.set()
    await asyncio.gather(*tasks)
    await service.close()
    assert not any(call.settlement for call in service.calls())
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
