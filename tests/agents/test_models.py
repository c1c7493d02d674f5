"""Steps that call models, through a gateway's double."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agents.tools.functions import Registry, tool
from tests.agents import fake_gateway
from tests.agents.fake_gateway import FakeGateway
from tests.agents.rig import RING, Rig, define, until
from tests.agents.witness import serving


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    """A gateway's double; ``.url`` is where it serves."""
    double = FakeGateway(RING)
    with serving(fake_gateway.make_server(double)) as url:
        double.url = url  # type: ignore[attr-defined]
        yield double


@pytest.fixture
def rig(make_rig: Callable[..., Rig], gateway: FakeGateway) -> Rig:
    return make_rig(gateway=gateway.url)  # type: ignore[attr-defined]


SCHEMA = "{type: object, required: [q], properties: {q: {type: array, items: {type: string}}}}"
QUICK = "defaults: {retry: {max_attempts: 3, backoff: {initial: 1ms, jitter: none}}}\n"


def test_llm_step(rig: Rig, gateway: FakeGateway) -> None:
    run = rig.run(
        define(
            "steps: [{id: a, call: llm, with: {model: echo, system: S, prompt: 'Hi {{ inputs.name }}', temperature: 0}}]\noutputs: {t: '${{ steps.a.output }}'}"
        ),
        {"name": "Ann"},
    )
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"t": "Hi Ann"}
    key, body, claims, headers = gateway.requests[0]
    assert key == f"{run}:a:0"
    assert body == {
        "model": "echo", "max_tokens": 1024, "temperature": 0.0,
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi Ann"}],
    }  # fmt: skip
    assert (claims.tenant, claims.team, claims.key_id, claims.run_id, claims.step) == (
        "acme",
        "core",
        "key1",
        run,
        "a",
    )
    row = rig.row(run)
    assert headers["x-airi-run"] == run
    assert headers["traceparent"].split("-")[1] == row.trace_id
    step = rig.steps(run)["a"]
    assert (step.cost_usd_micros, step.tokens, row.spent_usd_micros, row.spent_tokens) == (100, 15, 100, 15)
    until(lambda: len(rig.spans) == 2)
    assert {(span.kind, span.name, span.state) for span in rig.spans} == {
        ("step", "a", "succeeded"),
        ("workflow", "test", "succeeded"),
    }
    assert {span.trace_id for span in rig.spans} == {row.trace_id}


def test_schema_and_repair(rig: Rig, gateway: FakeGateway) -> None:
    gateway.answers.extend(["no json", '{"q": [1]}', '{"q": ["x"]}'])
    run = rig.run(
        define(
            f"steps: [{{id: a, call: llm, with: {{model: json, prompt: p, output_schema: {SCHEMA}}}}}]\noutputs: {{q: '${{{{ steps.a.output.q }}}}'}}"
        )
    )
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"q": ["x"]}
    assert [key.rpartition(":")[2] for key, *_ in gateway.requests] == ["0", "1", "2"]
    assert gateway.requests[0][1]["response_format"]["type"] == "json_schema"


def test_invalid_output_ends(rig: Rig, gateway: FakeGateway) -> None:
    gateway.answers.extend(["no"] * 3)
    run = rig.run(
        define(f"steps: [{{id: a, call: llm, with: {{model: json, prompt: p, output_schema: {SCHEMA}}}}}]")
    )
    assert rig.wait(run) == "failed"
    assert '"invalid_output"' in rig.row(run).error


def test_agent_with_tools(rig: Rig, gateway: FakeGateway, registry: Registry) -> None:
    @tool("math.square", effect="keyed", registry=registry)
    def square(x: int) -> int:
        """The square of x."""
        return x * x

    run = rig.run(
        define(
            "steps: [{id: a, call: agent, with: {model: tooler, input: 'go', tools: [math.square]}}]\noutputs: {t: '${{ steps.a.output }}'}"
        )
    )
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"t": "9"}
    assert gateway.requests[0][1]["tools"][0]["function"]["name"] == "math_square"
    assert gateway.requests[0][1]["tools"][0]["function"]["description"] == "The square of x."
    keys = {key.removeprefix(f"{run}:a:") for key in rig.effects(run)}
    assert keys == {"0", "0.0", "1"}
    until(lambda: len(rig.spans) == 5)
    assert {(span.kind, span.name) for span in rig.spans} == {
        ("agent", "a turn 1"),
        ("agent", "a turn 2"),
        ("tool", "math.square"),
        ("step", "a"),
        ("workflow", "test"),
    }


def test_wrong_arguments_go_back_to_the_model(rig: Rig, gateway: FakeGateway, registry: Registry) -> None:
    @tool("greet", effect="unsafe", registry=registry)
    def greet(name: str) -> str:
        raise AssertionError("must not be called with a number")

    run = rig.run(define("steps: [{id: a, call: agent, with: {model: tooler, input: 'go', tools: [greet]}}]"))
    assert rig.wait(run) == "completed"
    said = gateway.requests[1][1]["messages"][-1]
    assert said["role"] == "tool"
    assert "greet: name: must satisfy type: string" in said["content"]


@pytest.mark.parametrize(
    ("status", "error", "wanted", "tries"),
    [
        (429, {"code": "rate_limit_exceeded"}, "completed", 2),
        (503, {}, "completed", 2),
        (503, {"code": "budgets_rebuilding"}, "completed", 2),
        (500, {}, "completed", 2),
        (409, {"code": "idempotency_in_progress"}, "completed", 2),
        (403, {"code": "policy_denied", "type": "permission_error"}, "policy", 1),
        (400, {"code": "invalid_request"}, "4xx", 1),
        (429, {"code": "insufficient_quota"}, "budget", 1),
    ],
)
def test_error_classes(
    rig: Rig, gateway: FakeGateway, status: int, error: dict[str, Any], wanted: str, tries: int
) -> None:
    gateway.failures.append((status, {"retry-after": "0.01"}, error))
    run = rig.run(define(QUICK + "steps: [{id: a, call: llm, with: {model: echo, prompt: p}}]"))
    state = rig.wait(run)
    assert len(gateway.requests) == tries
    assert len({key for key, *_ in gateway.requests}) == 1
    if wanted == "completed":
        assert state == "completed"
    else:
        assert state == "failed"
        assert f'"class":"{wanted}"' in rig.row(run).error


def test_a_gateway_that_restarts_costs_no_attempt(rig: Rig, gateway: FakeGateway) -> None:
    """AIRI's own outages are waited for, whatever the step says about its retries."""
    away = ("budgets_rebuilding", "admission_unavailable", "service_unavailable")
    gateway.failures.extend((503, {"retry-after": "1"}, {"code": code}) for code in away)
    run = rig.run(
        define("steps: [{id: a, call: llm, with: {model: echo, prompt: p}, retry: {max_attempts: 1}}]")
    )
    assert rig.wait(run) == "completed"
    assert len({key for key, *_ in gateway.requests}) == 1
    assert len(gateway.requests) == 4


def test_retry_after_is_honoured(rig: Rig, gateway: FakeGateway) -> None:
    gateway.failures.append((429, {"retry-after": "0.3"}, {}))
    run = rig.run(define(QUICK + "steps: [{id: a, call: llm, with: {model: echo, prompt: p}}]"))
    assert rig.wait(run) == "completed"
    retrying = next(row for row in rig.events(run) if row.type == "step.retrying")
    started = [row.created_at for row in rig.events(run) if row.type == "step.started"]
    assert '"retry_in_ms":300' in retrying.data
    assert started[1] - retrying.created_at >= 295


def test_fifty_branches_race_for_one_budget(rig: Rig, gateway: FakeGateway) -> None:
    gateway.delay_s = 0.01
    run = rig.run(
        define(
            "budget: {cost_usd: 0.001}\n"
            "steps: [{id: a, for: {each: i, in: '${{ inputs.n }}', max_parallel: 50, on_error: collect}, call: llm, with: {model: echo, prompt: '{{ i }}'}}]\n"
            "outputs: {done: '${{ size(steps.a.outputs.filter(o, o != null)) }}'}"
        ),
        {"n": list(range(50))},
    )
    assert rig.wait(run, seconds=60) == "completed"
    row = rig.row(run)
    assert gateway.spent == row.spent_usd_micros == 1_000
    assert rig.outputs(run) == {"done": 10}
    assert row.held_usd_micros == 0


def test_a_small_grant_grows(rig: Rig, gateway: FakeGateway) -> None:
    gateway.min_grant = 900
    run = rig.run(
        define("budget: {cost_usd: 0.001}\nsteps: [{id: a, call: llm, with: {model: echo, prompt: p}}]")
    )
    assert rig.wait(run) == "completed"
    assert [claims.budget_usd_micros for _, _, claims, _ in gateway.requests] == [250, 1_000]


def test_budget_of_tokens_lowers_max_tokens(rig: Rig, gateway: FakeGateway) -> None:
    run = rig.run(
        define("budget: {tokens: 500}\nsteps: [{id: a, call: llm, with: {model: echo, prompt: p}}]")
    )
    assert rig.wait(run) == "completed"
    assert gateway.requests[0][1]["max_tokens"] < 500
    poor = rig.run(define("budget: {tokens: 5}\nsteps: [{id: a, call: llm, with: {model: echo, prompt: p}}]"))
    assert rig.wait(poor) == "failed"
    assert '"budget"' in rig.row(poor).error


def test_budget_of_an_agent(rig: Rig, gateway: FakeGateway, registry: Registry) -> None:
    @tool("noop", effect="idempotent", registry=registry)
    def noop() -> int:
        return 1

    run = rig.run(
        define(
            "steps: [{id: a, call: agent, with: {model: tooler, input: go, tools: [noop], budget: {cost_usd: 0.0001}}}]"
        )
    )
    assert rig.wait(run) == "failed"
    assert '"budget"' in rig.row(run).error
    assert gateway.spent == 100


def test_an_unanswered_call_is_written_off(rig: Rig, gateway: FakeGateway) -> None:
    gateway.delay_s = 20.0
    # Long enough for a busy machine to have recorded the call's intent: before that there is nothing to write off.
    one = "retry: {max_attempts: 1}, timeout: 1s, call: llm, with: {model: echo, prompt: p}"
    run = rig.run(
        define(
            "budget: {cost_usd: 0.001}\n"
            f"steps: [{{id: a, for: {{each: i, in: [1], on_error: collect}}, {one}}}, {{id: w, needs: [a], wait: {{approval: {{}}}}}}]"
        )
    )
    rig.wait(run, "waiting")
    row = rig.row(run)
    assert (row.held_usd_micros, row.spent_usd_micros) == (0, 250)
    assert rig.effects(run)[f"{run}:a/0:0"].state == "failed"
