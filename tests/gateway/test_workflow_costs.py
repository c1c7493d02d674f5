"""What a workflow costs that another workflow calls as a model: once for the tenant, once for the run that called it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER
from tests.support.live import wait_until

pytestmark = pytest.mark.integration
_WORKFLOWS = """
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: costs-inner}
inputs: {type: object, properties: {input: {type: string}}}
steps:
  - {id: one, call: llm, with: {model: rec/echo, prompt: "{{ inputs.input }}", max_tokens: 50}}
  - {id: two, needs: [one], call: llm, with: {model: rec/echo, prompt: "again", max_tokens: 50}}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: costs-outer}
budget: {cost_usd: 0.5, tokens: 100000}
steps:
  - {id: own, call: llm, with: {model: rec/echo, prompt: "mine", max_tokens: 50}}
  - {id: inner, needs: [own], call: llm, with: {model: workflow/costs-inner, prompt: "theirs"}}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: costs-broken}
inputs: {type: object, properties: {input: {type: string}}}
steps:
  - {id: one, call: llm, with: {model: rec/echo, prompt: "{{ inputs.input }}", max_tokens: 50}}
  - {id: two, needs: [one], call: llm, with: {model: rec/echo, output_schema: {type: object}, repairs: 0, prompt: "no", max_tokens: 50}}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: costs-unlucky}
budget: {cost_usd: 0.5}
steps:
  - id: inner
    call: llm
    with: {model: workflow/costs-broken, prompt: "theirs"}
    retry: {max_attempts: 2, backoff: {initial: 10ms}, on: [5xx]}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: costs-waiting}
inputs: {type: object, properties: {input: {type: string}}}
steps:
  - {id: one, wait: {approval: {role: auditor, message: "May I?"}}}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: costs-patient}
budget: {cost_usd: 0.5}
steps:
  - {id: inner, call: llm, with: {model: workflow/costs-waiting, prompt: "theirs"}}
"""
# Of the recorder's answer: 5 tokens in at 1 dollar a million and 2 out at 2.
CALL = 5 * 1 + 2 * 2
CALL_TOKENS = 7


@pytest.fixture(scope="module")
def workflows(door: Door) -> Door:
    with door.live.admin() as admin:
        headers = {"content-type": "application/yaml"}
        applied = admin.post("/admin/v1/apply", content=_WORKFLOWS, headers=headers)
        assert applied.status_code == 200, applied.text
    with door.live.client() as client:
        wait_until(lambda: client.get("/v1/models/workflow/costs-patient").status_code == 200)
    door.recorder.answer = lambda _: ANSWER
    return door


def run(door: Door, name: str) -> dict[str, Any]:
    """Run a workflow to its end."""
    with door.live.client() as client:
        started = client.post(f"/v1/workflows/{name}/runs", json={"inputs": {}})
        assert started.status_code in (200, 201, 202), started.text
        run_id = started.json()["id"]
        found: dict[str, Any] = wait_until(
            lambda: (
                (seen := client.get(f"/v1/runs/{run_id}").json())["state"] in ("completed", "failed") and seen
            ),
            patience_s=20,
        )
        return found


def calls_of(door: Door, run_id: str, count: int) -> list[dict[str, Any]]:
    """The records of all model calls in a run's trace, its inner runs' among them."""
    with door.live.client() as client:
        (first, *_) = wait_until(lambda: client.get(f"/admin/v1/traces?run={run_id}").json()["data"])
        path = f"/admin/v1/traces/{first['trace_id']}"
        found: list[dict[str, Any]] = wait_until(
            lambda: len(calls := client.get(path).json()["calls"]) >= count and calls
        )
        return found


def test_an_inner_workflow_counts_once_for_the_tenant_and_once_for_the_outer_run(workflows: Door) -> None:
    outer = run(workflows, "costs-outer")
    assert outer["state"] == "completed", outer
    assert (outer["spent_usd_micros"], outer["spent_tokens"]) == (3 * CALL, 3 * CALL_TOKENS)
    steps = {step["path"]: step for step in outer["steps"]}
    assert steps["own"]["cost_usd_micros"] == CALL
    assert steps["inner"]["cost_usd_micros"] == 2 * CALL
    calls = calls_of(workflows, outer["id"], 4)
    costs = sorted((call["model"], call["cost_usd_micros"]) for call in calls)
    assert costs == [*[("rec/echo", CALL)] * 3, ("workflow/costs-inner", 0)]


def test_an_inner_workflow_that_fails_has_cost_what_it_has_spent_however_often_it_is_asked(
    workflows: Door,
) -> None:
    unlucky = run(workflows, "costs-unlucky")
    assert unlucky["state"] == "failed"
    (step,) = unlucky["steps"]
    assert step["attempt"] == 2
    # Both attempts ask under one key, so they speak of one inner run.
    assert (unlucky["spent_usd_micros"], step["cost_usd_micros"]) == (2 * CALL, 2 * CALL)
    costs = [call["cost_usd_micros"] for call in calls_of(workflows, unlucky["id"], 4)]
    assert sorted(costs) == [0, 0, CALL, CALL]


def test_an_inner_workflow_that_waits_for_a_person_is_charged_what_it_may_still_spend(
    workflows: Door,
) -> None:
    patient = run(workflows, "costs-patient")
    assert patient["state"] == "completed", patient
    with workflows.live.client() as client:
        runs = client.get("/v1/runs?workflow=costs-waiting").json()["data"]
    (inner,) = [found for found in runs if found["workflow"] == "costs-waiting"]
    assert patient["spent_usd_micros"] == inner["budget_usd_micros"] > 0


def test_a_caller_that_is_no_run_is_told_no_cost(workflows: Door) -> None:
    body = {"model": "workflow/costs-inner", "messages": [{"role": "user", "content": "hi"}]}
    answer = workflows.post("/v1/chat/completions", body)
    assert answer.status_code == 200
    assert "x-airi-cost-usd-micros" not in answer.headers
    assert answer.json()["airi"]["spent_usd_micros"] == 2 * CALL


def test_a_workflow_that_keeps_failing_closes_the_door_to_no_other(workflows: Door) -> None:
    def ask(name: str) -> int:
        body = {"model": f"workflow/{name}", "messages": [{"role": "user", "content": "hi"}]}
        return workflows.post("/v1/chat/completions", body).status_code

    assert [ask("costs-broken") for _ in range(6)] == [502] * 6
    assert ask("costs-inner") == 200
    streamed = {
        "model": "workflow/costs-broken",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }
    for _ in range(6):
        assert "failed in mid-stream" in workflows.post("/v1/chat/completions", streamed).text
    assert ask("costs-inner") == 200
