"""docs/failure-modes.md, row by row: real processes of a live tree are killed, or stopped so that they do not answer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from redis.exceptions import ConnectionError as RedisAway
from sqlalchemy.exc import OperationalError

from bench import tree
from bench.budget_race import books_of
from gateway.control import http_errors
from tests.support.live import Live, free_port, wait_until

pytestmark = pytest.mark.integration
CHAT = {"model": "sim/small", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
FLOW = """
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: two-steps}
steps:
  - {id: one, call: llm, with: {model: sim/small, prompt: "Say hello."}}
  - {id: two, needs: [one], call: llm, with: {model: sim/small, prompt: "Say it again."}}
outputs: {said: "${{ steps.two.output }}"}
"""


def config(dead_port: int) -> str:
    """Tenants with a hard and a soft budget; a pool where nobody is, with and without a fallback."""
    return f"""
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {{name: hard}}
budgets: [{{name: month, usd: 100}}]
---
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {{name: soft}}
budgets: [{{name: month, usd: 100, mode: soft}}]
limits: {{requests_per_minute: 600}}
---
apiVersion: airi/v1alpha1
kind: Pool
metadata: {{name: gone}}
engine: vllm
scrape_interval: 200ms
replicas: [{{name: a, url: "http://127.0.0.1:{dead_port}"}}]
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: lonely}}
versions: [{{name: v1, targets: [{{pool: gone, model: m}}]}}]
price: {{input: 1, output: 1}}
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: covered}}
versions: [{{name: v1, targets: [{{pool: gone, model: m}}]}}]
price: {{input: 1, output: 1}}
fallbacks: [sim/small]
---
{FLOW.strip()}
"""


@pytest.fixture(scope="module")
def tree_of_airi(short_tmp: Path) -> Iterator[Live]:
    with Live(short_tmp / "failing", config(free_port())) as live:
        yield live


@pytest.fixture
def live(tree_of_airi: Live) -> Iterator[Live]:
    """The tree, whole again for the next test."""
    yield tree_of_airi
    wait_until(lambda: ready(tree_of_airi), 30)


@pytest.fixture(scope="module")
def keys(tree_of_airi: Live) -> dict[str, str]:
    with tree_of_airi.admin() as admin:
        made = {
            name: admin.post("/admin/v1/keys", json={"tenant": name}).json()["key"]
            for name in ("hard", "soft")
        }
    for key in made.values():
        with tree_of_airi.client(key) as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    return made


def ready(live: Live) -> bool:
    try:
        return httpx.get(live.base + "/readyz", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def call(live: Live, key: str, **headers: str) -> tuple[httpx.Response, float]:
    """Make a call; return the answer and how long it took."""
    with live.client(key) as client:
        began = time.monotonic()
        answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        return answer, time.monotonic() - began


def refused(answer: httpx.Response, status: int = 503) -> bool:
    """Whether it is a refusal as callers may expect it: OpenAI's form, and when to come again."""
    return (
        answer.status_code == status
        and bool(answer.json()["error"]["message"])
        and (status != 503 or int(answer.headers["retry-after"]) >= 1)
    )


def settled(live: Live) -> dict[str, Any]:
    """Wait until nothing is open and nothing is on its way into the ledger; return the books."""

    def quiet() -> dict[str, Any] | None:
        books = books_of(live)
        return books if not books["open_reservations"] and not books["in_stream"] else None

    found: dict[str, Any] = wait_until(quiet, 40, 0.3)
    return found


def test_redis_does_not_answer(live: Live, keys: dict[str, str]) -> None:
    with tree.paused(live, "redis"):
        answer, took = call(live, keys["hard"])
        assert refused(answer), answer.text
        assert took < 2, "a hard budget is refused at once, not after a long wait"
        answer, took = call(live, keys["soft"], **{"idempotency-key": "k"})
        assert refused(answer), "whether it is a repetition cannot be known"
        answer, took = call(live, keys["soft"])
        assert answer.status_code == 200, answer.text
        assert took < 3
        assert not ready(live)
    wait_until(lambda: call(live, keys["hard"])[0].status_code == 200, 20)
    assert settled(live)["balanced"], "what was let in is on the books"


def test_redis_is_killed(live: Live, keys: dict[str, str]) -> None:
    victim, new = tree.kill(live, "redis")
    assert new != victim
    first, took = call(live, keys["hard"])
    assert first.status_code in (200, 503), first.text
    assert took < 2
    assert call(live, keys["soft"])[0].status_code == 200
    wait_until(lambda: call(live, keys["hard"])[0].status_code == 200, 20)
    assert settled(live)["balanced"]
    assert "redis was killed by SIGKILL; starting it again" in live.log()


def test_redis_loses_everything(live: Live, keys: dict[str, str]) -> None:
    """As after a FLUSHALL or a failover to an empty replica: money refuses until it is rebuilt from the ledger."""
    import redis

    with (
        live.client(keys["hard"]) as client,
        redis.Redis(unix_socket_path=str(live.home / "run" / "redis.sock")) as server,
    ):
        spent = sum(books_of(live)["usd_by_cause"].values())
        server.flushall()
        answers = []

        def rebuilt() -> bool:
            answers.append(client.post("/v1/chat/completions", json=CHAT))
            return answers[-1].status_code == 200

        wait_until(rebuilt, 20)
    assert all(refused(answer) for answer in answers[:-1])
    books = settled(live)
    assert books["balanced"]
    assert sum(books["usd_by_cause"].values()) > spent > 0


def test_the_control_plane_is_killed(live: Live, keys: dict[str, str]) -> None:
    with tree.paused(live, "control"):  # long enough dead for the test to look
        assert call(live, keys["hard"])[0].status_code == 200
    os.kill(tree.pid(live, "control"), signal.SIGKILL)
    with live.admin() as admin:
        answer = admin.get("/admin/v1/keys")
        assert refused(answer), answer.text
        for name in ("hard", "soft"):
            assert call(live, keys[name])[0].status_code == 200
        wait_until(lambda: admin.get("/admin/v1/keys").status_code == 200, 30)
    assert settled(live)["balanced"]
    assert "control was killed by SIGKILL; starting it again" in live.log()


def test_the_writer_is_killed(live: Live, keys: dict[str, str]) -> None:
    victim = tree.pid(live, "writer")
    os.kill(victim, signal.SIGSTOP)
    answer, took = call(live, keys["hard"])
    assert answer.status_code == 200
    assert took < 2, "nobody waits for the record"
    os.kill(victim, signal.SIGKILL)
    trace = answer.headers["x-airi-trace-id"]
    with live.admin() as admin:
        found = wait_until(
            lambda: (seen := admin.get(f"/admin/v1/traces/{trace}")).status_code == 200 and seen, 30
        )
    assert found.json()
    assert tree.pid(live, "writer") != victim


def test_a_gateway_is_killed(live: Live, keys: dict[str, str]) -> None:
    victim, new = tree.kill(live, "gateway")
    assert new != victim
    wait_until(lambda: ready(live), 30)
    assert call(live, keys["hard"])[0].status_code == 200
    assert settled(live)["balanced"]


def test_a_pool_is_down(live: Live, keys: dict[str, str]) -> None:
    with live.client(keys["hard"]) as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "model": "lonely"})
        assert refused(answer), (answer.status_code, answer.text)
        answer = client.post("/v1/chat/completions", json={**CHAT, "model": "covered"})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-airi-model"].startswith("sim/small@")
    assert books_of(live)["balanced"]


def test_replicas_of_the_simulated_pool_die(live: Live, keys: dict[str, str]) -> None:
    victims = tree.pids(live, "sim")
    os.kill(victims[0], signal.SIGKILL)
    for _ in range(10):
        assert call(live, keys["hard"])[0].status_code == 200, "another replica serves"
    wait_until(
        lambda: len(tree.pids(live, "sim")) == len(victims) and victims[0] not in tree.pids(live, "sim"), 20
    )


def test_the_worker_is_killed(live: Live) -> None:
    os.kill(victim := tree.pid(live, "worker"), signal.SIGKILL)
    assert run_to_its_end(live)["state"] == "completed"
    assert tree.pid(live, "worker") != victim


def test_a_run_is_accepted_while_the_broker_is_away(live: Live) -> None:
    with tree.paused(live, "redis"), live.client() as client:
        answer = client.post("/v1/workflows/two-steps/runs", json={"inputs": {}})
        assert answer.status_code == 201, answer.text
    assert finished(live, answer.json()["id"])["state"] == "completed"


def run_to_its_end(live: Live) -> dict[str, Any]:
    with live.client() as client:
        answer = client.post("/v1/workflows/two-steps/runs", json={"inputs": {}})
    assert answer.status_code == 201, answer.text
    return finished(live, answer.json()["id"])


def finished(live: Live, run: str) -> dict[str, Any]:
    with live.client() as client:
        found: dict[str, Any] = wait_until(
            lambda: (
                (body := client.get(f"/v1/runs/{run}").json()).get("state") in ("completed", "failed")
                and body
            ),
            60,
            0.2,
        )
    return found


@pytest.mark.parametrize("error", [OperationalError("SELECT 1", {}, OSError("away")), RedisAway("away")])
def test_the_control_plane_says_that_a_store_is_away(error: Exception) -> None:
    app = FastAPI()
    http_errors.install(app)

    @app.get("/")
    def fails() -> None:
        raise error

    assert refused(TestClient(app).get("/"))


@contextmanager
def stopped_database(server: str) -> Iterator[None]:
    """SIGSTOP every process of a PostgreSQL server."""
    import psycopg

    with psycopg.connect(server) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        postmaster = psutil.Process(row[0]).parent()
    assert postmaster is not None
    stopped = [postmaster, *postmaster.children(recursive=True)]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            if process.is_running():
                process.resume()


def test_the_database_does_not_answer(short_tmp: Path, postgres_server: str, postgres_url: str) -> None:
    with Live(short_tmp / "pg", config(free_port()), AIRI_DATABASE_URL=postgres_url) as live:
        with live.admin() as admin:
            made = admin.post("/admin/v1/keys", json={"tenant": "hard"}).json()
        assert call(live, made["key"])[0].status_code == 200
        with stopped_database(postgres_server):
            for _ in range(3):
                answer, took = call(live, made["key"])
                assert answer.status_code == 200, "keys and configuration are in memory"
                assert took < 2
            answer, took = call(live, made["key"], **{"idempotency-key": "once"})
            assert answer.status_code == 200, "paid for, so handed out, though it cannot be kept"
            assert took < 8
            unknown, _ = call(live, "airi_nobodyknows_" + "x" * 40)
            assert refused(unknown), "an outage never looks like a wrong key"
        assert wait_until(lambda: call(live, "airi_nobodyknows_" + "x" * 40)[0].status_code == 401, 20)
        assert settled(live)["balanced"]
        assert run_to_its_end(live)["state"] == "completed"
