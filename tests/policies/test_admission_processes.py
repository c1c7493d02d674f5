"""Several processes on one hard budget, one of them killed; random histories of the real code."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine

from bench.interleavings import run_seeds
from policies.admission.wire import Counters
from policies.ledger import LedgerConsumer, verify
from policies.reaper import Reaper
from tests.policies import kit

CALLERS = 50
PROCESSES = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture
def sql(tmp_path: Path) -> Engine:
    return kit.engine(f"sqlite:///{tmp_path / 'a.db'}")


def test_processes_never_overspend_a_hard_budget(redis_url: str, sql: Engine, tmp_path: Path) -> None:
    client = kit.built(redis_url, sql)
    reaper, consumer = Reaper(sql, client), LedgerConsumer(sql, client)
    outputs = [tmp_path / f"{i}.log" for i in range(PROCESSES)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.policies.budget_worker", redis_url, f"w{i}", str(CALLERS), str(i)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=outputs[i].open("wb"),
        )
        for i in range(PROCESSES)
    ]
    try:
        _live(client, reaper, consumer, outputs, children)
    finally:
        for child in children:
            child.kill()
            child.wait(10)
    deadline = time.monotonic() + 20
    while verify(sql, client).open_reservations:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        reaper.run_once()
    consumer.run_until_empty()
    report = verify(sql, client)
    assert report.balanced
    assert report.excess_usd_micros == 0
    sent, cost = _told(outputs)
    assert len(sent) > 300
    # What callers were told to spend at most, by what is known of each: within the budget.
    assert sum(cost.get(name, worst) for name, worst in sent.items()) <= 300_000
    assert sum(report.usd_by_cause.values()) <= 300_000
    [counters] = list(client.scan_iter("airi:{acme}:c"))
    raw: Any = client.hget(counters, "org")
    assert Counters.decode(raw).running == 0


def _live(
    client: redis.Redis,
    reaper: Reaper,
    consumer: LedgerConsumer,
    outputs: list[Path],
    children: list[subprocess.Popen[bytes]],
) -> None:
    """Let them call until the budget is nearly spent; kill the first one in the middle."""
    deadline = time.monotonic() + 60
    while len(_told(outputs)[0]) < 150:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children[0].kill()
    end = time.monotonic() + 4
    while time.monotonic() < end:
        reaper.run_once()
        consumer.run_once()
        time.sleep(0.05)
    for child in children[1:]:
        child.communicate(b"stop\n", timeout=30)
        assert child.returncode == 0


def _told(outputs: list[Path]) -> tuple[dict[str, int], dict[str, int]]:
    sent: dict[str, int] = {}
    cost: dict[str, int] = {}
    for path in outputs:
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) == 3:
                (sent if words[0] == "sent" else cost)[words[1]] = int(words[2])
    return sent, cost


@pytest.mark.usefixtures("redis_server")
def test_interleavings_of_some_seeds() -> None:
    """The bench runs 10,000; a seed that breaks is replayed by ``python -m bench.interleavings --first SEED --seeds 1 --trace``."""
    result = run_seeds(0, 60)
    assert "broken_seed" not in result, result
    assert result["admitted"] > 200
    assert result["rebuilds"] > 5
