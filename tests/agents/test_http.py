"""The routes of runs and workflows as models, over a real server and a working engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine as Database

from agents.service import RunService
from agents.tools.functions import Registry, ToolContext, tool
from airi.config.kinds import Workflow
from airi.database import open_engine
from airi.keys import NewKey
from airi.secrets import Secret
from airi.settings import Settings
from airi.storage import prepare
from airi.tokens import RunClaims, mint
from gateway.control import http_errors, runs, workflow_model
from gateway.control.services import build
from tests.agents.rig import RING, Rig, define, until

FLOWS = {
    "sum": "inputs: {type: object, required: [n], properties: {n: {type: integer}, m: {type: integer, default: 5}}}\n"
    "steps: [{id: a, call: tool, with: {tool: add, args: {x: '${{ inputs.n }}', y: '${{ inputs.m }}'}}}]\n"
    "outputs: {total: '${{ steps.a.output }}'}",
    "ask": "steps: [{id: ok, wait: {approval: {role: policy_approver, message: 'Sure?'}}}]\noutputs: {by: '${{ steps.ok.output.by }}'}",
    "echo": "inputs: {type: object, properties: {input: {type: string}, messages: {type: array}}}\n"
    "steps: [{id: a, call: tool, with: {tool: shout, args: {text: '${{ inputs.input }}'}}}]\noutputs: {t: '${{ steps.a.output }}'}",
    "many": "steps: [{id: a, for: {each: i, in: [1,2,3,4,5,6,7,8,9,10,11,12], max_parallel: 2}, call: tool, with: {tool: nap, args: {ms: 30}}}]",
    "long": f"steps: [{{id: a, for: {{each: i, in: {list(range(200))}, max_parallel: 2}}, call: tool, with: {{tool: nap, args: {{ms: 30}}}}}}]",
    "broken": "steps: [{id: a, call: tool, with: {tool: refuse}}]",
}  # fmt: skip


@dataclass
class World:
    url: str
    rig: Rig
    keys: dict[str, str]
    key_ids: dict[str, str]

    def call(self, method: str, path: str, key: str = "dev", **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[key]}", **options.pop("headers", {})}
        return httpx.request(method, self.url + path, headers=headers, timeout=20, **options)

    def ended(self, run: str) -> dict[str, Any]:
        self.rig.wait(run)
        return dict(self.call("GET", f"/v1/runs/{run}").json())


@pytest.fixture
def world(home: Path, redis_url: str, registry: Registry, tmp_path: Path) -> Iterator[World]:
    @tool("add", effect="idempotent", registry=registry)
    def add(x: int, y: int) -> int:
        return x + y

    @tool("shout", effect="idempotent", registry=registry)
    def shout(text: str) -> str:
        return text.upper()

    @tool("nap", effect="keyed", registry=registry)
    def nap(ms: int, context: ToolContext) -> int:
        time.sleep(ms / 1000)
        return ms

    @tool("refuse", effect="idempotent", registry=registry)
    def refuse() -> None:
        from agents.errors import ToolError

        raise ToolError("no")

    database = open_engine(f"sqlite:///{tmp_path / 'airi.db'}", full_sync=False)
    prepare(database)
    runs_database: Database = open_engine(f"sqlite:///{tmp_path / 'runs.db'}", full_sync=True)
    rig = Rig(runs_database, registry)
    settings = Settings(home=home, redis_url=redis_url, secret_key=Secret("tests-" + "x" * 40))
    services = build(settings, database)
    service = RunService(rig.engine, services.config_store.current, rig.box)
    services = build(settings, database, run_service=service)
    documents = [{**define(text).document, "metadata": {"name": name}} for name, text in FLOWS.items()]
    services.config_store.apply(
        [Workflow.model_validate(d) for d in documents], author="test", manager="file"
    )
    keys, ids = {"admin": services.admin_key.reveal()}, {}
    for name, tenant, role in (
        ("dev", "acme", "developer"), ("other", "globex", "developer"), ("approver", "acme", "policy_approver"),
        ("service", "acme", "service"),
    ):  # fmt: skip
        record, secret = services.key_log.create(NewKey(tenant=tenant, role=role), actor="test")
        keys[name], ids[name] = secret.reveal(), record.id
    app = FastAPI()
    http_errors.install(app)
    app.include_router(runs.router(services))
    app.include_router(workflow_model.router(services))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield World(f"http://127.0.0.1:{port}", rig, keys, ids)
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
        rig.close()
        services.redis.close()
        database.dispose()
        runs_database.dispose()


def test_workflows_and_a_run(world: World) -> None:
    listed = world.call("GET", "/v1/workflows").json()["data"]
    assert [item["name"] for item in listed] == sorted(FLOWS)
    answer = world.call(
        "POST", "/v1/workflows/sum/runs", json={"inputs": {"n": 2}}, headers={"idempotency-key": "k"}
    )
    assert answer.status_code == 201
    run = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/runs/{run}"
    again = world.call(
        "POST", "/v1/workflows/sum/runs", json={"inputs": {"n": 2}}, headers={"idempotency-key": "k"}
    )
    assert (again.status_code, again.json()["id"]) == (200, run)
    conflict = world.call(
        "POST", "/v1/workflows/sum/runs", json={"inputs": {"n": 3}}, headers={"idempotency-key": "k"}
    )
    assert conflict.status_code == 409
    done = world.ended(run)
    assert (done["state"], done["inputs"], done["outputs"]) == ("completed", {"n": 2, "m": 5}, {"total": 7})
    assert [(step["path"], step["state"]) for step in done["steps"]] == [("a", "succeeded")]
    assert world.call("GET", "/v1/runs").json()["data"][0]["id"] == run


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/workflows/summ/runs", {"inputs": {}}, 404, "did you mean 'sum'"),
        ("/v1/workflows/sum/runs", {"inputs": {"n": "secret"}}, 400, "inputs.n: must satisfy type"),
        ("/v1/workflows/sum/runs", {"input": {}}, 400, "input"),
        ("/v1/workflows/sum/runs", {"inputs": {}}, 400, "'n' is required"),
    ],
)
def test_faults_are_said_clearly(world: World, path: str, body: Any, status: int, says: str) -> None:
    answer = world.call("POST", path, json=body)
    assert answer.status_code == status
    assert says in answer.json()["error"]["message"]
    assert "secret" not in answer.text


def test_tenants_do_not_see_each_other(world: World) -> None:
    run = world.call("POST", "/v1/workflows/ask/runs", json={}).json()["id"]
    for method, path, body in (
        ("GET", f"/v1/runs/{run}", None), ("GET", f"/v1/runs/{run}/events", None), ("GET", f"/v1/runs/{run}/effects", None),
        ("POST", f"/v1/runs/{run}/cancel", {}), ("POST", f"/v1/runs/{run}/approve", {}), ("POST", f"/v1/runs/{run}/resume", {}),
    ):  # fmt: skip
        assert world.call(method, path, "other", json=body).status_code == 404, path
    assert world.call("GET", "/v1/runs", "other").json()["data"] == []
    assert world.call("GET", f"/v1/runs/{run}", "admin").status_code == 200
    assert world.call("POST", "/v1/workflows/ask/runs", "admin", json={}).status_code == 403
    assert httpx.get(f"{world.url}/v1/runs/{run}").status_code == 401


def test_approval_needs_the_role(world: World) -> None:
    run = world.call("POST", "/v1/workflows/ask/runs", json={}).json()["id"]
    world.rig.wait(run, "waiting")
    shown = world.call("GET", f"/v1/runs/{run}").json()
    assert shown["approvals"] == [{"step": "ok", "role": "policy_approver", "message": "Sure?"}]
    assert world.call("POST", f"/v1/runs/{run}/approve", json={}).status_code == 403
    path = f"/v1/runs/{run}/approve"
    assert world.call("POST", path, "approver", json={"approved": "yes"}).status_code == 400, "no yes or no"
    assert world.call("POST", path, "approver", json={"approved": True}).status_code == 200
    assert world.ended(run)["outputs"] == {"by": f"key/{world.key_ids['approver']}"}
    assert world.call("POST", path, "approver", json={}).status_code == 409


def test_cancel(world: World) -> None:
    run = world.call("POST", "/v1/workflows/long/runs", json={}).json()["id"]
    answer = world.call("POST", f"/v1/runs/{run}/cancel").json()
    assert set(answer) >= {"state", "in_flight"}
    assert world.ended(run)["state"] == "cancelled"
    assert world.call("POST", f"/v1/runs/{run}/cancel").status_code == 200


def _events(text: str) -> list[int]:
    return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]


def test_events_cut_anywhere_have_no_gap_and_no_repeat(world: World) -> None:
    run = world.call("POST", "/v1/workflows/many/runs", json={}).json()["id"]
    got: list[int] = []
    headers = {"authorization": f"Bearer {world.keys['dev']}"}
    cuts = 0
    while True:  # each connection is cut after one or two events
        last = {"last-event-id": str(got[-1])} if got else {}
        with httpx.stream(
            "GET", f"{world.url}/v1/runs/{run}/events", headers=headers | last, timeout=20
        ) as stream:
            final = False
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    got.append(int(line[4:]))
                if line.startswith("event: run.completed"):
                    final = True
                if line.startswith("data: ") and len(got) % 3:
                    break
        cuts += 1
        if final:
            break
    assert cuts > 10
    assert got == list(range(1, len(got) + 1))
    whole = world.call("GET", f"/v1/runs/{run}/events?starting_after=3").text
    assert _events(whole) == got[3:]
    assert world.call("GET", f"/v1/runs/{run}/events", headers={"last-event-id": "x"}).status_code == 400


MODEL = workflow_model.ROUTE


def test_workflow_as_a_model(world: World) -> None:
    body = {"model": "workflow/echo", "messages": [{"role": "user", "content": "hi"}]}
    answer = world.call("POST", MODEL, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "HI"
    assert answer.headers["x-airi-cost-usd-micros"] == "0"
    one = world.call("POST", MODEL, json={"model": "workflow/sum", "messages": body["messages"]})
    assert one.status_code == 400
    broken = world.call("POST", MODEL, json={"model": "workflow/broken", "messages": body["messages"]})
    assert broken.status_code == 502
    assert broken.json()["error"]["code"] == "workflow_failed"


def test_workflow_as_a_model_streams(world: World) -> None:
    body = {
        "model": "workflow/echo",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stream": True,
    }
    text = world.call("POST", MODEL, json=body | {"stream_options": {"include_usage": True}}).text
    assert ": step.succeeded a" in text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == "HI"
    assert chunks[-1]["choices"] == []
    assert text.rstrip().endswith("data: [DONE]")
    failed = world.call("POST", MODEL, json={**body, "model": "workflow/broken"}).text
    assert "workflow_failed" in failed
    assert "[DONE]" not in failed


def test_a_waiting_workflow_says_so(world: World) -> None:
    body = {"model": "workflow/ask", "messages": [{"role": "user", "content": "hi"}]}
    answer = world.call("POST", MODEL, json=body, headers={"idempotency-key": "k"}).json()
    run = answer["airi"]["run_id"]
    assert f"/v1/runs/{run}/approve" in answer["choices"][0]["message"]["content"]
    world.call("POST", f"/v1/runs/{run}/approve", "approver", json={})
    world.rig.wait(run)
    again = world.call("POST", MODEL, json=body, headers={"idempotency-key": "k"}).json()
    assert again["airi"] == {"run_id": run, "state": "completed", "spent_usd_micros": 0, "tokens": 0}


def test_nesting_is_bounded_and_carries_the_budget(world: World) -> None:
    body = {"model": "workflow/echo", "messages": [{"role": "user", "content": "hi"}]}
    run = world.call("POST", MODEL, json=body).json()["airi"]["run_id"]
    for depth in range(1, 6):
        claims = RunClaims(
            "acme", None, world.key_ids["dev"], run, "a", 1_000, time.time_ns() // 1_000_000 + 60_000
        )
        headers = {"authorization": f"Bearer {mint(RING, claims)}"}
        answer = httpx.post(world.url + MODEL, json=body, headers=headers, timeout=20)
        if depth == 5:
            assert answer.json()["error"]["code"] == "workflow_too_deep"
            break
        run = answer.json()["airi"]["run_id"]
        assert (world.rig.row(run).depth, world.rig.row(run).budget_usd_micros) == (depth, 1_000)
    assert httpx.get(world.url + f"/v1/runs/{run}", headers=headers).status_code == 403


def test_a_run_that_is_cancelled_takes_those_along_that_it_called(world: World) -> None:
    outer = world.call("POST", "/v1/workflows/ask/runs", json={"inputs": {}}).json()["id"]
    world.rig.wait(outer, "waiting")
    claims = RunClaims(
        "acme", None, world.key_ids["dev"], outer, "a", 1_000, time.time_ns() // 1_000_000 + 60_000
    )
    headers = {"authorization": f"Bearer {mint(RING, claims)}", "idempotency-key": "once"}
    body = {"model": "workflow/long", "messages": [{"role": "user", "content": "hi"}]}
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(httpx.post, world.url + MODEL, json=body, headers=headers, timeout=20)
        inner = until(lambda: world.rig.called_by(outer))
        world.call("POST", f"/v1/runs/{outer}/cancel").raise_for_status()
        assert world.rig.row(inner).state in ("stopping", "cancelled")
        assert called.result().json()["error"]["code"] == "workflow_failed"
    assert world.rig.wait(inner) == "cancelled"
    late = httpx.post(
        world.url + MODEL, json=body, headers={**headers, "idempotency-key": "late"}, timeout=20
    )
    assert late.status_code == 409
