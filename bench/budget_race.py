"""One hard budget, and everything that could overspend it: ``python -m bench.budget_race``.

Four gateway processes with 200 concurrent callers each, unary and streamed, some of whom leave in the middle; an
upstream that ignores ``max_tokens`` and lies in its usage (:mod:`bench.liar`); one gateway killed with SIGKILL under
way. Prints one JSON line. What must be so at the end, and is (exit code 0), or is not (1):

- ``overspend_usd_micros`` 0: what was sent and promised, added up from the *upstream's* books, is within the budget;
- ``ledger_overspend_usd_micros`` 0: so is the ledger, but for what the upstream added on its own (``beyond_promise``);
- ``undercharged_calls`` 0: no call was charged less than what was sent and promised of it;
- ``leaked_holds`` 0 once the reaper has been round, and the books balance to the micro-dollar.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from airi.errors import AiriError
from airi.http.client import ClientOptions, HttpPool
from airi.redis import connect
from airi.settings import Settings
from airi.up.databases import databases
from bench import FOLDER, liar, tree
from policies.ledger import verify
from tests.support.live import ROOT, Live, free_port, wait_until

_ENOUGH = 4
"""A caller stops when the budget has refused it so often in a row."""
_MAX_TOKENS = (16, 48, 120)
_LEAVES = 0.25
_REAPED_WITHIN_S = 60


@dataclass
class Race:
    """How large it is."""

    processes: int = 4
    callers: int = 200
    budget_usd: float = 40.0
    kill_at: float = 0.3
    """Share of the budget after which a gateway is killed."""
    limit_s: float = 90.0
    seed: int = 1


@dataclass
class Callers:
    """What the callers saw."""

    race: Race
    origin: str
    key: str
    outcomes: Counter[str] = field(default_factory=Counter)
    over: bool = False

    async def run(self) -> None:
        """Let everybody call until the budget refuses them."""
        count = self.race.processes * self.race.callers
        pool = HttpPool(
            self.origin, options=ClientOptions(max_connections=count, max_waiters=count, use_proxy=False)
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.race.limit_s):
                await asyncio.gather(
                    *(self._caller(pool, random.Random(self.race.seed * 10_000 + n)) for n in range(count))
                )
                self.outcomes["ended_by_the_budget"] = 1
        self.over = True
        pool.close()

    async def _caller(self, pool: HttpPool, dice: random.Random) -> None:
        refused = 0
        while refused < _ENOUGH:
            try:
                outcome = await self._call(pool, dice)
            except AiriError:
                outcome = "connection_lost"
            self.outcomes[outcome] += 1
            refused = refused + 1 if outcome == "insufficient_quota" else 0
            if outcome in ("insufficient_quota", "connection_lost") or outcome.isdigit():
                await asyncio.sleep(dice.uniform(0.1, 0.6))

    async def _call(self, pool: HttpPool, dice: random.Random) -> str:
        stream, most = dice.random() < 0.5, dice.choice(_MAX_TOKENS)
        body: dict[str, Any] = {
            "model": "liar", "stream": stream,
            "messages": [{"role": "user", "content": f"{dice.choice(liar.MODES)} {dice.randint(1, 60)} " + "é" * dice.randint(0, 200)}],
        }  # fmt: skip
        if dice.random() < 0.9:
            body["max_tokens"] = most
        patience = dice.uniform(0.01, 0.3) if dice.random() < _LEAVES else None
        headers = [(b"authorization", f"Bearer {self.key}".encode()), (b"content-type", b"application/json")]
        try:
            async with asyncio.timeout(patience):
                response = await pool.send(
                    b"POST",
                    b"/v1/chat/completions",
                    headers,
                    json.dumps(body).encode(),
                    first_byte_ms=60_000,
                    idle_ms=60_000,
                )
                try:
                    answer = await response.read(1 << 22)
                finally:
                    response.close()
        except TimeoutError:
            return "left"
        if response.status == 200:
            return "streamed" if stream else "whole"
        return str(json.loads(answer)["error"]["code"] or response.status)


def _config(port: int, race: Race) -> str:
    documents: list[dict[str, Any]] = [
        {
            "kind": "Provider", "metadata": {"name": "liar"}, "base_url": f"http://127.0.0.1:{port}/v1",
            "max_connections": 2_000, "max_concurrent": 5_000,
        },
        {
            "kind": "Model", "metadata": {"name": "liar"},
            "price": {"input": liar.INPUT_USD_MICROS, "output": liar.OUTPUT_USD_MICROS},
            "contract": {"max_output_tokens": max(_MAX_TOKENS)},
            "versions": [{"name": "v1", "targets": [{"provider": "liar", "model": "liar"}]}],
        },
        {"kind": "Tenant", "metadata": {"name": "race"}, "budgets": [{"name": "all", "usd": race.budget_usd, "window": "total"}]},
    ]  # fmt: skip
    return "\n---\n".join(json.dumps({"apiVersion": "airi/v1alpha1", **one}) for one in documents)


@contextlib.contextmanager
def _upstream(port: int, books: Path) -> Iterator[None]:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.liar", str(port), str(books)], cwd=ROOT, pass_fds=(writing,),
        env={**os.environ, "PYTHONPATH": str(ROOT), "AIRI_READY_FD": str(writing)},
    )  # fmt: skip
    os.close(writing)
    try:
        if os.read(reading, 6) != b"READY\n":
            raise RuntimeError("the upstream did not start")
        yield
    finally:
        os.close(reading)
        process.terminate()
        process.wait(15)


def query(live: Live, statement: str) -> list[Any]:
    """Read AIRI's database."""
    with contextlib.closing(sqlite3.connect(live.home / "airi.db", timeout=30)) as connection:
        return connection.execute(statement).fetchall()


def _spent(live: Live) -> int:
    return int(query(live, "SELECT coalesce(sum(usd_micros), 0) FROM ledger WHERE tenant = 'race'")[0][0])


def books_of(live: Live) -> dict[str, Any]:
    """Return what ``airi ledger verify`` would say."""
    settings = Settings.from_environment(live.environment)
    with databases(settings) as (main, _), connect(settings.effective_redis_url, timeout_s=30) as client:
        report = verify(main, client)
    return {**msgspec.to_builtins(report), "balanced": report.balanced}


async def _kill_one(live: Live, race: Race, callers: Callers) -> dict[str, int]:
    """Kill a gateway when the race is well under way; return who died and who came."""
    wanted = race.budget_usd * 1e6 * race.kill_at
    while await asyncio.to_thread(_spent, live) < wanted and not callers.over:
        await asyncio.sleep(0.05)
    victim, new = await asyncio.to_thread(tree.kill, live, "gateway")
    return {"killed": victim, "new": new}


def run(race: Race) -> dict[str, Any]:
    """Hold the race and return the figures."""
    with tempfile.TemporaryDirectory(prefix="airi-race-", dir=FOLDER) as folder:
        port, books = free_port(), Path(folder) / "books.jsonl"
        books.touch()
        environment = {"AIRI_WORKERS": str(race.processes), "AIRI_SIM_REPLICAS": "1"}
        with _upstream(port, books), Live(Path(folder) / "home", _config(port, race), **environment) as live:
            with live.admin() as admin:
                made = admin.post("/admin/v1/keys", json={"tenant": "race"})
                made.raise_for_status()
            callers = Callers(race, live.base, made.json()["key"])
            began = time.monotonic()

            async def together() -> dict[str, int]:
                killing = asyncio.create_task(_kill_one(live, race, callers))
                await callers.run()
                return await killing

            killed = uvloop.run(together())
            seconds = time.monotonic() - began
            books_say = settled(live)
            return _figures(race, live, callers, liar.read(books)) | {
                "gateway": killed, "seconds": round(seconds, 1), "books": books_say,
            }  # fmt: skip


def settled(live: Live) -> dict[str, Any]:
    """Wait until the reaper has been round and the ledger has everything; return what verify says then."""
    found: dict[str, Any] = {}

    def nothing_open() -> bool:
        found.clear()
        found.update(books_of(live))
        return not found["open_reservations"] and not found["in_stream"]

    with contextlib.suppress(AssertionError):
        wait_until(nothing_open, _REAPED_WITHIN_S, 0.5)
    return found


def _figures(race: Race, live: Live, callers: Callers, lines: list[liar.Line]) -> dict[str, Any]:
    budget = round(race.budget_usd * 1e6)
    owed: dict[str, int] = defaultdict(int)
    beyond: Counter[str] = Counter()
    for line in lines:
        owed[line.request.removeprefix("req_")] += min(line.invoice_usd_micros(), line.promise_usd_micros())
        beyond[line.mode] += max(0, line.invoice_usd_micros() - line.promise_usd_micros())
    charged: dict[str, int] = {
        trace: usd - excess
        for trace, usd, excess in query(
            live,
            "SELECT trace_id, sum(usd_micros), sum(excess_usd_micros) FROM ledger WHERE tenant = 'race' GROUP BY trace_id",
        )
    }
    short = {trace: usd - charged.get(trace, 0) for trace, usd in owed.items() if usd > charged.get(trace, 0)}
    return {
        "budget_usd_micros": budget,
        "sent_and_promised_usd_micros": sum(owed.values()),
        "overspend_usd_micros": max(0, sum(owed.values()) - budget),
        "ledger_usd_micros": sum(charged.values()),
        "ledger_overspend_usd_micros": max(0, sum(charged.values()) - budget),
        "beyond_promise_usd_micros": {mode: usd for mode, usd in sorted(beyond.items()) if usd},
        "undercharged_calls": len(short),
        "undercharged_examples": [vars(line) | {"short": short[line.request[4:]]} for line in lines if line.request[4:] in short][:5],
        "upstream_calls": len(lines),
        "callers": race.processes * race.callers,
        "outcomes": dict(sorted(callers.outcomes.items())),
    }  # fmt: skip


def problems(result: dict[str, Any]) -> list[str]:
    """Return what is not as it must be."""
    books = result["books"]
    wrong = [
        name
        for name in ("overspend_usd_micros", "ledger_overspend_usd_micros", "undercharged_calls")
        if result[name]
    ]
    wrong += ["leaked_holds"] if books["open_reservations"] else []
    wrong += [] if books["balanced"] else ["books do not balance"]
    wrong += [] if result["outcomes"].get("ended_by_the_budget") else ["the race was not ended by the budget"]
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.budget_race", description=__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--callers", type=int, default=200, help="of each process")
    parser.add_argument("--budget", type=float, default=40.0, help="dollars")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    race = Race(options.processes, options.callers, options.budget, seed=options.seed)
    result = run(race)
    wrong = problems(result)
    print(json.dumps({**result, "leaked_holds": result["books"]["open_reservations"], "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
