"""How long an event loop waits for the interpreter while a thread beside it makes a new snapshot.

    python -m bench.swap_stall [--tenants 1000] [--policies 1000] [--swaps 40]

In one process, without a network: a loop that wants to wake every millisecond, quiet at first, then beside a thread that
compiles snapshots with one policy changed, then beside one that compiles a snapshot with all of them changed. Lateness in
milliseconds; prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop

from airi.config.document import ConfigDocument
from airi.config.loader import load_data
from airi.config.secrets import SecretResolver
from airi.keys import KeyRecord
from bench.config_scale import base, policy, tenant
from bench.load import percentile
from gateway.process import SWITCH_S
from gateway.snapshot import Snapshot

NOBODY = cast(SecretResolver, type("NoSecrets", (), {"resolve": None}))


def document(before: ConfigDocument | None, resources: list[dict[str, Any]], version: int) -> ConfigDocument:
    """Return a document with these resources changed, as the store hands it out: its digest is known."""
    found = {} if before is None else dict(before.resources)
    found |= {item.key: item.resource for item in load_data(resources)}
    return ConfigDocument(found, version, known_digest=f"digest-{version}")


async def lateness(work: Callable[[], Awaitable[None]]) -> dict[str, float]:
    """Return how late the loop woke up while ``work`` was done."""
    late: list[int] = []
    done = asyncio.ensure_future(work())
    while not done.done():
        since = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(max(0, round((time.perf_counter() - since - 0.001) * 1e6)))
    await done
    return {"p50": percentile(late, 0.5) / 1e3, "p99": percentile(late, 0.99) / 1e3, "worst": max(late) / 1e3}


async def measure(tenants: int, policies: int, swaps: int) -> dict[str, Any]:
    """Build the first snapshot, fill its plans, then swap."""
    resources = [json.loads(text) for text in base(1).split("\n---\n")]
    resources += [tenant(number) for number in range(tenants)] + [
        policy(number) for number in range(policies)
    ]
    served = [Snapshot.build(document(None, resources, 1), NOBODY, Path("/none"))]
    for number in range(4 * tenants):
        key = KeyRecord(id=f"key-{number}", tenant=f"tenant-{number % tenants}", team="red", digest=b"-" * 32)
        served[0].plan(key, "plain")
    gc.collect()
    gc.freeze()
    took: list[float] = []

    def swap(changed: list[dict[str, Any]]) -> None:
        since = time.perf_counter()
        before = served[-1]
        made = document(before.document, changed, before.version + 1)
        served[:] = [Snapshot.build(made, NOBODY, Path("/none"), before=before)]
        took.append((time.perf_counter() - since) * 1e3)

    async def single() -> None:
        for number in range(swaps):
            await asyncio.to_thread(swap, [policy(number % policies, 500_000)])
            await asyncio.sleep(0.02)

    async def everything() -> None:
        await asyncio.to_thread(swap, [policy(number, 600_000) for number in range(policies)])

    quiet = await lateness(lambda: asyncio.sleep(2))
    one = await lateness(single)
    one_took = sorted(took)[len(took) // 2]
    every = await lateness(everything)
    return {
        "quiet_late_ms": quiet, "one_policy_late_ms": one, "one_policy_took_ms": round(one_took, 1),
        "every_policy_late_ms": every, "every_policy_took_ms": round(took[-1], 1),
    }  # fmt: skip


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--swaps", type=int, default=40)
    arguments = parser.parse_args()
    sys.setswitchinterval(SWITCH_S)
    result = uvloop.run(measure(arguments.tenants, arguments.policies, arguments.swaps))
    print(json.dumps({**result, "load_average": psutil.getloadavg()[0]}))


if __name__ == "__main__":
    main()
