"""A backup of a live tree, restored into an empty home without its Redis: no run lost, nothing overspent, keys as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.settings import Settings
from airi.up.backup import backup, restore
from bench.budget_race import books_of, query
from tests.support.live import Live, wait_until

pytestmark = pytest.mark.integration
BUDGET_USD_MICROS = 4_000
CALL = {"model": "priced", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 20}
CONFIG = """
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {name: paying}
budgets: [{name: all, usd: 0.004, window: total}]
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {name: priced}
price: {input: 0.1, output: 20}
versions: [{name: v1, targets: [{pool: sim, model: sim/small}]}]
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: waits}
steps:
  - {id: one, call: llm, with: {model: sim/small, prompt: "Say hello."}}
  - {id: ask, needs: [one], wait: {approval: {role: org_admin, message: "Go on?", timeout: 24h, on_timeout: reject}}}
  - {id: two, needs: [ask], call: llm, with: {model: sim/small, prompt: "Say it again."}}
outputs: {said: "${{ steps.two.output }}"}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: quick}
steps:
  - {id: one, call: llm, with: {model: sim/small, prompt: "Say hello.", max_tokens: 400}}
  - {id: two, needs: [one], call: llm, with: {model: sim/small, prompt: "Say it again.", max_tokens: 400}}
outputs: {said: "${{ steps.two.output }}"}
"""


def start(client: httpx.Client, workflow: str) -> str:
    answer = client.post(f"/v1/workflows/{workflow}/runs", json={"inputs": {}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def state(client: httpx.Client, run: str) -> str:
    return str(client.get(f"/v1/runs/{run}").json().get("state"))


def make_history(live: Live) -> dict[str, Any]:
    """Keys that work and one that was revoked, money spent, runs finished, running and waiting for a person."""
    with live.admin() as admin:
        paying = admin.post("/admin/v1/keys", json={"tenant": "paying"}).json()
        revoked = admin.post("/admin/v1/keys", json={"tenant": "dev"}).json()
        assert admin.delete(f"/admin/v1/keys/{revoked['id']}").status_code < 300
    with live.client(paying["key"]) as client:
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=CALL).status_code == 200
    with live.client() as client:
        done = start(client, "quick")
        waiting = [start(client, "waits") for _ in range(3)]
        wait_until(lambda: state(client, done) == "completed", 40)
        wait_until(lambda: all(state(client, run) == "waiting" for run in waiting), 40)
        output = client.get(f"/v1/runs/{done}").json()["outputs"]
        running = [start(client, "quick") for _ in range(4)]
    return {
        "paying": paying["key"],
        "revoked": revoked["key"],
        "done": done,
        "output": output,
        "waiting": waiting,
        "running": running,
    }


def test_nothing_is_lost(short_tmp: Path) -> None:
    archive = short_tmp / "airi-backup.tar.gz"
    with Live(short_tmp / "before", CONFIG) as live:
        history = make_history(live)
        backup(Settings.from_environment(live.environment), archive)  # while calls and runs are under way
        dev_key, admin_key = live.key, live.admin_key
    after = Live(short_tmp / "after")
    settings = Settings.from_environment({**after.environment, "AIRI_HOME": str(short_tmp / "after")})
    settings.home.rmdir()
    restore(settings, archive)
    assert not (settings.home / "redis").exists(), "Redis begins with nothing"
    with after as live:
        assert (live.key, live.admin_key) == (dev_key, admin_key)
        with live.client(history["revoked"]) as client:
            assert client.post("/v1/chat/completions", json=CALL).status_code == 401
        check_runs(live, history)
        check_money(live, history["paying"])


def check_runs(live: Live, history: dict[str, Any]) -> None:
    with live.client() as client:
        done = client.get(f"/v1/runs/{history['done']}").json()
        assert (done["state"], done["outputs"]) == ("completed", history["output"])
        for run in history["waiting"]:
            assert state(client, run) == "waiting"
            assert client.post(f"/v1/runs/{run}/approve", json={}).status_code == 200
        for run in (*history["waiting"], *history["running"]):
            wait_until(lambda run=run: state(client, run) in ("completed", "failed"), 60)
            assert state(client, run) == "completed", client.get(f"/v1/runs/{run}").text


def check_money(live: Live, key: str) -> None:
    """What was spent before counts; the budget is spent to its end, and not beyond it."""
    books = wait_until(lambda: (found := books_of(live))["balanced"] and found["counters"] and found, 20)
    assert books["differences"] == []
    with live.client(key) as client:
        refused = 0
        for _ in range(200):
            answer = client.post("/v1/chat/completions", json=CALL)
            if answer.status_code == 429:
                refused += 1
                if refused == 3:
                    break
            else:
                assert answer.status_code == 200, answer.text
        assert refused == 3
    wait_until(lambda: (found := books_of(live))["in_stream"] == 0 and found["open_reservations"] == 0, 30)
    spent = query(live, "SELECT sum(usd_micros) FROM ledger WHERE tenant = 'paying'")[0][0]
    assert 0 < spent <= BUDGET_USD_MICROS
    assert spent > BUDGET_USD_MICROS * 0.8, "the budget was used, so the bound was tested"
