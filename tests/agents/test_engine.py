"""The engine's promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from agents.commands import Starter
from agents.errors import RunConflictError, RunStateError, ToolError
from agents.tools.functions import Registry, ToolContext, tool
from agents.tuning import Tuning, machine
from tests.agents.rig import HostileBroker, Rig, define, until

CHAIN = """
inputs: {type: object, properties: {n: {type: integer}}}
steps:
  - {id: a, call: tool, with: {tool: add, args: {x: "${{ inputs.n }}", y: 1}}}
  - {id: b, needs: [a], call: tool, with: {tool: add, args: {x: "${{ steps.a.output.sum }}", y: 10}}}
  - id: c
    needs: [b]
    if: "${{ steps.b.output.sum > 100 }}"
    call: tool
    with: {tool: add, args: {x: 0, y: 0}}
  - {id: d, needs: [c, b], call: tool, with: {tool: add, args: {x: "${{ steps.b.output.sum }}", y: 100}}}
outputs: {total: "${{ steps.d.output.sum }}", text: "b was ${{ steps.b.output.sum }}"}
"""
FAN = """
steps:
  - id: all
    for: {each: item, in: "${{ inputs['items'] }}", max_parallel: 3}
    call: tool
    with: {tool: double, args: {x: "${{ item }}"}}
  - {id: sum, needs: [all], call: tool, with: {tool: total, args: {items: "${{ steps.all.outputs }}"}}}
outputs: {total: "${{ steps.sum.output }}", n: "${{ size(steps.all.outputs) }}"}
"""


@pytest.fixture(autouse=True)
def tools(registry: Registry) -> Counter[str]:
    """Tools that count what was applied, by key."""
    applied: Counter[str] = Counter()

    @tool("add", effect="idempotent", registry=registry)
    def add(x: int, y: int) -> dict[str, int]:
        return {"sum": x + y}

    @tool("double", effect="keyed", registry=registry)
    def double(x: int, context: ToolContext) -> int:
        applied[context.key] += 1
        return 2 * x

    @tool("total", effect="idempotent", registry=registry)
    def total(items: list[int]) -> int:
        return sum(items)

    @tool("refuse", effect="unsafe", registry=registry)
    def refuse() -> None:
        raise ToolError("not today")

    return applied


def test_chain_with_condition(rig: Rig) -> None:
    run = rig.run(define(CHAIN), {"n": 1})
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"total": 112, "text": "b was 12"}
    assert rig.states(run) == {"a": "succeeded", "b": "succeeded", "c": "skipped", "d": "succeeded"}
    numbers = [row.seq for row in rig.events(run)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert rig.types(run)[0] == "run.started"
    assert rig.types(run)[-1] == "run.completed"


def test_a_chain_needs_one_message(rig: Rig) -> None:
    run = rig.run(define(CHAIN), {"n": 1})
    rig.wait(run)
    assert rig.broker.sent == 1


def test_fan_out_and_join(rig: Rig, tools: Counter[str]) -> None:
    run = rig.run(define(FAN), {"items": list(range(20))})
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"total": 380, "n": 20}
    assert set(tools.values()) == {1}
    assert len(tools) == 20


def test_empty_fan_out(rig: Rig) -> None:
    run = rig.run(define(FAN), {"items": []})
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"total": 0, "n": 0}


def test_fan_out_keeps_its_width(make_rig: Callable[..., Rig], registry: Registry) -> None:
    running, most, full = [0], [0], threading.Condition()

    @tool("slow", effect="keyed", registry=registry)
    def slow(x: int) -> int:
        with full:
            running[0] += 1
            most[0] = max(most[0], running[0])
            full.notify_all()
            full.wait_for(lambda: most[0] >= 3, 20)  # until the fan-out was as wide as it may be
            running[0] -= 1
        return x

    rig = make_rig()
    run = rig.run(define(FAN.replace("tool: double", "tool: slow")), {"items": list(range(12))})
    assert rig.wait(run, seconds=60) == "completed"
    assert most[0] == 3


def test_collected_errors(rig: Rig, registry: Registry) -> None:
    @tool("odd", effect="idempotent", registry=registry)
    def odd(x: int) -> int:
        if x % 2 == 0:
            raise ToolError("even")
        return x

    text = FAN.replace("tool: double", "tool: odd").replace(
        "max_parallel: 3", "max_parallel: 2, on_error: collect"
    )
    text = (
        text.split("  - {id: sum")[0]
        + "outputs: {o: '${{ steps.all.outputs }}', e: '${{ steps.all.errors }}'}"
    )
    run = rig.run(define(text), {"items": [1, 2, 3]})
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"o": [1, None, 3], "e": [{"index": 1, "class": "tool", "message": "even"}]}


def test_a_failed_item_fails_the_run(rig: Rig) -> None:
    run = rig.run(
        define(FAN.replace("tool: double", "tool: refuse").replace('args: {x: "${{ item }}"}', "args: {}")),
        {"items": [1, 2, 3, 4, 5]},
    )
    assert rig.wait(run) == "failed"
    assert set(rig.states(run).values()) <= {"failed", "cancelled"}


@pytest.mark.parametrize("broker", [{"copies": 3, "shuffle": True}, {"lose": 0.5, "shuffle": True}])
def test_messages_are_only_hints(
    make_rig: Callable[..., Rig], tools: Counter[str], broker: dict[str, Any]
) -> None:
    rig = make_rig(broker=HostileBroker(**broker))
    ids = [rig.run(define(FAN), {"items": list(range(6))}) for _ in range(8)]
    for run in ids:
        assert rig.wait(run, seconds=60) == "completed"
        assert rig.outputs(run) == {"total": 30, "n": 6}
    assert set(tools.values()) == {1}


def test_idempotent_start(rig: Rig) -> None:
    first = rig.run(define(CHAIN), {"n": 1}, idempotency_key="k")
    assert rig.run(define(CHAIN), {"n": 1}, idempotency_key="k") == first
    with pytest.raises(RunConflictError):
        rig.run(define(CHAIN), {"n": 2}, idempotency_key="k")
    assert rig.run(define(CHAIN), {"n": 2}, idempotency_key="k", starter=Starter("other")) != first


def test_a_run_is_pinned_to_its_definition(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    old = define(
        "steps: [{id: w, wait: {duration: 300ms}}, {id: a, needs: [w], call: tool, with: {tool: add, args: {x: 1, y: 1}}}]\noutputs: {v: '${{ steps.a.output.sum }}'}"
    )
    run = rig.run(old)
    new = define(
        "steps: [{id: z, call: tool, with: {tool: add, args: {x: 5, y: 5}}}]\noutputs: {v: '${{ steps.z.output.sum }}'}"
    )
    second = rig.run(new)
    assert rig.wait(run) == "completed"
    assert rig.wait(second) == "completed"
    assert (rig.outputs(run), rig.outputs(second)) == ({"v": 2}, {"v": 10})
    assert old.id != new.id


def test_retry_by_class_until_it_works(rig: Rig, registry: Registry) -> None:
    from agents.errors import StepFailed

    attempts = []

    @tool("flaky", effect="idempotent", registry=registry)
    def flaky(context: ToolContext) -> int:
        attempts.append(context.key)
        if len(attempts) < 3:
            raise StepFailed("5xx", "away")
        return len(attempts)

    retry = "retry: {max_attempts: 4, backoff: {initial: 10ms, jitter: none}, on: [5xx]}"
    run = rig.run(
        define(
            f"steps: [{{id: a, call: tool, with: {{tool: flaky}}, {retry}}}]\noutputs: {{v: '${{{{ steps.a.output }}}}'}}"
        )
    )
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"v": 3}
    assert len(set(attempts)) == 1, "the key never holds the attempt"
    assert rig.types(run).count("step.retrying a") == 2


def test_retries_end_at_exactly_max_attempts(rig: Rig, registry: Registry) -> None:
    from agents.errors import StepFailed

    count = []

    @tool("broken", effect="idempotent", registry=registry)
    def broken() -> None:
        count.append(1)
        raise StepFailed("timeout", "never")

    run = rig.run(
        define(
            "steps: [{id: a, call: tool, with: {tool: broken}, retry: {max_attempts: 3, backoff: {initial: 1ms}}}]"
        )
    )
    assert rig.wait(run) == "failed"
    assert len(count) == 3
    assert rig.steps(run)["a"].failures == 3


def test_timeout_of_a_function_that_hangs(rig: Rig, registry: Registry) -> None:
    release = threading.Event()

    @tool("hang", effect="idempotent", registry=registry)
    def hang() -> int:
        release.wait(20)
        return 1

    run = rig.run(
        define("steps: [{id: a, call: tool, with: {tool: hang}, timeout: 100ms, retry: {max_attempts: 1}}]")
    )
    try:
        assert rig.wait(run) == "failed"
        assert '"timeout"' in rig.row(run).error
    finally:
        release.set()


def test_approval(rig: Rig) -> None:
    flow = define("""
steps:
  - {id: ok, wait: {approval: {role: developer, message: "Publish {{ inputs.what }}?"}}}
  - {id: a, needs: [ok], call: tool, with: {tool: add, args: {x: 1, y: 2}}}
outputs: {by: "${{ steps.ok.output.by }}", sum: "${{ steps.a.output.sum }}"}
""")
    run = rig.run(flow, {"what": "it"})
    assert rig.wait(run, "waiting") == "waiting"
    assert rig.engine.commands.decide(run, None, approved=True, by="ann") == "ok"
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"by": "ann", "sum": 3}
    with pytest.raises(RunStateError):
        rig.engine.commands.decide(run, None, approved=True, by="bob")


def test_rejection_fails_or_continues(rig: Rig) -> None:
    text = "steps: [{id: ok, wait: {approval: {on_reject: %s}}}]\noutputs: {v: '${{ steps.ok.output.approved }}'}"
    failing, going = rig.run(define(text % "fail")), rig.run(define(text % "continue"))
    for run in (failing, going):
        rig.wait(run, "waiting")
        rig.engine.commands.decide(run, "ok", approved=False, by="ann")
    assert rig.wait(failing) == "failed"
    assert '"rejected"' in rig.row(failing).error
    assert rig.wait(going) == "completed"
    assert rig.outputs(going) == {"v": False}


def test_approval_times_out(rig: Rig) -> None:
    run = rig.run(
        define(
            "steps: [{id: ok, wait: {approval: {timeout: 100ms, on_timeout: approve}}}]\noutputs: {by: '${{ steps.ok.output.by }}'}"
        )
    )
    assert rig.wait(run) == "completed"
    assert rig.outputs(run) == {"by": "timeout"}


def test_cancel_starts_nothing_more(rig: Rig, registry: Registry) -> None:
    go, started = threading.Event(), []

    @tool("gate", effect="keyed", registry=registry)
    def gate(x: int, context: ToolContext) -> int:
        started.append(context.key)
        go.wait(10)
        return x

    run = rig.run(define(FAN.replace("tool: double", "tool: gate")), {"items": list(range(30))})
    until(lambda: len(started) == 3)
    in_flight = rig.engine.commands.cancel(run, "ann")
    go.set()
    assert rig.wait(run) == "cancelled"
    assert set(started) <= set(in_flight)
    assert len(started) == 3
    assert rig.engine.commands.cancel(run, "ann") == []
    assert not set(rig.states(run).values()) & {"ready", "running", "waiting", "joining"}


def test_budget_of_steps_and_wall(rig: Rig) -> None:
    few = rig.run(define("budget: {steps: 4}\n" + FAN), {"items": list(range(9))})
    assert rig.wait(few) == "failed"
    assert '"budget"' in rig.row(few).error
    late = rig.run(define("budget: {wall: 100ms}\nsteps: [{id: w, wait: {duration: 1h}}]"))
    assert rig.wait(late) == "failed"
    assert "wall" in rig.row(late).error


def test_concurrency_groups_queue_in_order(rig: Rig) -> None:
    flow = define("concurrency: {group: '${{ inputs.g }}', max: 2}\nsteps: [{id: ok, wait: {approval: {}}}]")
    ids = [rig.run(flow, {"g": "x"}) for _ in range(5)]
    other = rig.run(flow, {"g": "y"})
    until(lambda: rig.row(other).state == "waiting")
    assert [rig.row(run).state for run in ids] == ["waiting", "waiting", "queued", "queued", "queued"]
    rig.engine.commands.decide(ids[1], None, approved=True, by="ann")
    rig.wait(ids[2], "waiting")
    rig.engine.commands.cancel(ids[0], "ann")
    rig.wait(ids[3], "waiting")
    assert rig.row(ids[4]).state == "queued"
    for run in ids[2:4]:
        rig.engine.commands.decide(run, None, approved=True, by="ann")
    rig.wait(ids[4], "waiting")


def test_expression_faults_fail_the_run_clearly(rig: Rig) -> None:
    run = rig.run(define(CHAIN), {})
    assert rig.wait(run) == "failed"
    assert '"expression"' in rig.row(run).error


def test_resume_after_failure(rig: Rig, registry: Registry) -> None:
    works = [False]

    @tool("later", effect="idempotent", registry=registry)
    def later(x: int) -> int:
        if not works[0] and x == 2:
            raise ToolError("not yet")
        return x

    run = rig.run(define(FAN.replace("tool: double", "tool: later")), {"items": [1, 2, 3, 4, 5, 6, 7, 8]})
    assert rig.wait(run) == "failed"
    works[0] = True
    rig.engine.commands.resume(run, None, "retry", None, "ann")
    assert rig.wait(run, "completed", "failed") == "completed", rig.row(run).error
    assert rig.outputs(run) == {"total": 36, "n": 8}


def test_hints_that_a_lost_worker_had_fetched_are_told_again_at_once(
    make_rig: Callable[..., Rig],
) -> None:
    """Not when the message would be repeated anyhow: the run must not stand still for half a minute."""
    patient = Tuning(republish_ms=600_000)
    lost = make_rig(tuning=patient, work=False)
    lost.engine.leases.owner = f"{machine()}/999999999/5"  # a process that is gone
    run = lost.run(
        define(
            "steps:\n"
            "  - {id: a, call: tool, with: {tool: add, args: {x: 1, y: 1}}}\n"
            "  - {id: b, call: tool, with: {tool: add, args: {x: 1, y: 1}}}\n"
        )
    )

    def fetched() -> dict[str, int]:
        lost.caretaker.publish()
        found = {}
        while not lost.broker.messages.empty():
            hint = lost.broker.messages.get()
            assert hint is not None
            found[hint.path] = hint.fence
        return found

    if (first := fetched()) == {"": 0}:
        lost.engine.commands.advance(run)
        first = fetched()
    assert set(first) == {"a", "b"}
    assert lost.engine.leases.claim(run, "a", first["a"]) is not None
    assert fetched() == {}
    lost.caretaker.reap()
    again = fetched()
    assert again == {"a": first["a"] + 2, "b": first["b"]}
    assert lost.engine.leases.claim(run, "b", again["b"]) is not None


def test_hints_that_a_worker_without_any_lease_had_fetched_are_told_again_by_its_successor(
    make_rig: Callable[..., Rig],
) -> None:
    """Nothing in the database says that it is dead; but whoever starts may stand in for somebody who died."""
    patient = Tuning(republish_ms=600_000)
    killed = make_rig(tuning=patient, work=False)
    run = killed.run(define(FAN), {"items": [1, 2, 3]})
    while killed.caretaker.publish():  # to the killed worker, who answers nothing
        pass
    assert killed.broker.sent > 0
    make_rig(tuning=patient)
    assert killed.wait(run) == "completed"
