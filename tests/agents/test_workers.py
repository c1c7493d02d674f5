"""Real worker processes: killed at every named point, stopped and continued, drained."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from sqlalchemy import Engine as Database

from agents.faults import POINTS
from tests.agents import fake_gateway, witness
from tests.agents.fake_gateway import FakeGateway
from tests.agents.processes import Workers
from tests.agents.rig import RING, define, until
from tests.agents.witness import Witness, serving

pytestmark = pytest.mark.integration
FLOW = """
defaults: {retry: {max_attempts: 5, backoff: {initial: 50ms}}}
steps:
  - {id: plan, call: llm, with: {model: echo, prompt: "plan {{ inputs.topic }}"}}
  - id: dig
    needs: [plan]
    for: {each: q, in: [1, 2, 3], max_parallel: 3}
    call: tool
    with: {tool: apply.keyed, args: {delay_ms: 5, echo: "${{ q }}"}}
  - {id: agent, needs: [dig], call: agent, with: {model: tooler, input: go, tools: [apply.keyed, nap]}}
  - {id: last, needs: [agent], call: tool, with: {tool: noop, args: {i: 7}}}
outputs: {dug: "${{ steps.dig.outputs.map(o, o.echo) }}", last: "${{ steps.last.output }}"}
"""


@pytest.fixture
def seen() -> Witness:
    return Witness()


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway(RING)


@pytest.fixture
def workers(
    any_engine: Database, home: Path, redis_url: str, seen: Witness, gateway: FakeGateway
) -> Iterator[Workers]:
    with (
        serving(witness.make_server(seen)) as witness_url,
        serving(fake_gateway.make_server(gateway)) as gateway_url,
    ):
        made = Workers(any_engine, home, redis_url, gateway_url, witness_url)
        try:
            yield made
        finally:
            made.close()


def test_the_witness_applies_no_request_whose_body_was_cut_off(seen: Witness) -> None:
    head = b"POST /keyed HTTP/1.1\r\nhost: w\r\nidempotency-key: k\r\ncontent-length: 11\r\nconnection: close\r\n\r\n"
    with serving(witness.make_server(seen)) as address:
        for sent in (head, head + b'{"ech', head + b'{"echo": 3}'):
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as caller:
                caller.sendall(sent)
                caller.shutdown(socket.SHUT_WR)
                while caller.recv(4096):
                    pass
    assert [call["body"] for call in seen.calls] == [{"echo": 3}]


def test_runs_through_celery_and_drains(workers: Workers, seen: Witness) -> None:
    process = workers.start()
    control = workers.control
    ids = [control.run(define(FLOW), {"topic": "tea"}) for _ in range(5)]
    for run in ids:
        assert control.wait(run, seconds=60) == "completed", control.row(run).error
        assert control.outputs(run) == {"dug": [1, 2, 3], "last": 7}
    assert set(seen.applied().values()) == {1}
    code, seconds = workers.stop(process)
    assert code == 0
    assert seconds < 20


@pytest.mark.timeout(300)
def test_killed_at_every_point(
    workers: Workers, seen: Witness, gateway: FakeGateway, any_engine: Database
) -> None:
    """One worker after the other dies, each elsewhere: nothing is lost, nothing that was applied is repeated."""
    points = POINTS if any_engine.dialect.name == "sqlite" else ("intent", "commit", "publish")
    control = workers.control
    workers.caretaker.close()  # the workers alone publish, wake and reap
    ids: list[str] = []
    pids = set()
    for point in points:
        worker = workers.doomed(f"{point}:2")
        pids.add(worker.pid)
        ids += [control.run(define(FLOW), {"topic": "tea"}) for _ in range(2)]
        workers.died(worker)
    pids.add(workers.start().pid)
    assert len(pids) == len(points) + 1
    for run in ids:
        assert control.wait(run, seconds=60) == "completed", control.row(run).error
        assert control.outputs(run) == {"dug": [1, 2, 3], "last": 7}
    assert set(seen.applied().values()) == {1}
    assert len(seen.applied()) == 4 * len(ids)
    assert set(gateway.served.values()) == {1}, "an answer that had arrived is not paid for twice"


def stop_between_transactions(pid: int, database: Database) -> None:
    """SIGSTOP a worker while it holds no lock: SQLite has one writer, and a stopped one would keep all others waiting."""
    for _ in range(100):
        os.kill(pid, signal.SIGSTOP)
        # The signal stops a process once one of its threads takes it; until then the others run on, into a transaction.
        until(lambda: threads_of(pid) == {"T"})
        if database.dialect.name != "sqlite" or can_be_written(database, seconds=0.2):
            return
        os.kill(pid, signal.SIGCONT)
        assert can_be_written(database, seconds=30)  # the transaction that it was in has ended
    raise AssertionError("the worker was within a transaction each time it was stopped")


def threads_of(pid: int) -> set[str]:
    """The states of a process's threads, as ``proc(5)`` writes them: ``T`` is stopped."""
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return states


def can_be_written(database: Database, seconds: float) -> bool:
    """Whether nobody holds SQLite's write lock, waiting for it up to ``seconds``."""
    probe = sqlite3.connect(str(database.url.database), timeout=seconds, isolation_level=None)
    try:
        probe.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    finally:
        probe.close()
    return True


def test_a_zombie_cannot_commit(workers: Workers, seen: Witness, any_engine: Database) -> None:
    flow = define(
        "steps: [{id: a, call: tool, with: {tool: apply.keyed, args: {hold: true}}}]\noutputs: {n: '${{ steps.a.output.n }}'}"
    )
    control = workers.control
    zombie = workers.start(AIRI_RUNS_LEASE_MS="3000")
    run = control.run(flow)
    until(lambda: seen.calls)
    stop_between_transactions(zombie.pid, any_engine)
    workers.start()
    assert control.wait(run, seconds=60) == "completed"
    before = control.types(run), control.steps(run)["a"]
    assert before[1].attempt == 2
    seen.release.set()
    os.kill(zombie.pid, signal.SIGCONT)
    after = control.run(define("steps: [{id: b, call: tool, with: {tool: nap, args: {ms: 300}}}]"))
    control.wait(after)
    assert (control.types(run), control.steps(run)["a"]) == before
    assert set(seen.applied().values()) == {1}
    assert zombie.poll() is None, "the zombie lives on and works"


HOLDER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize("any_engine", ["sqlite"], indirect=True)
def test_all_wait_for_a_process_that_was_stopped_within_a_transaction(
    workers: Workers, any_engine: Database
) -> None:
    """SQLite has one writer: nothing is lost and nothing is refused, it is later."""
    control = workers.control
    workers.start()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(any_engine.url.database)])
    try:
        until(lambda: threads_of(holder.pid) == {"T"})
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(control.run, define("steps: [{id: a, call: tool, with: {tool: noop}}]"))
            assert not wait([run], timeout=0.5).done
            holder.send_signal(signal.SIGCONT)
            assert control.wait(run.result(30)) == "completed"
    finally:
        holder.kill()
        holder.wait()


def test_an_unsafe_effect_is_never_repeated_blindly(workers: Workers, seen: Witness) -> None:
    flow = define(
        "steps: [{id: a, call: tool, with: {tool: apply.unsafe, args: {delay_ms: 30000}}}]\noutputs: {v: '${{ steps.a.output }}'}"
    )
    control = workers.control
    first = workers.start()
    ids = [control.run(flow) for _ in range(3)]
    until(lambda: len(seen.calls) == 3)
    first.kill()
    first.wait()
    workers.start()
    for run in ids:
        assert control.wait(run, seconds=60) == "needs_review"
    assert set(seen.called().values()) == {1}
    control.engine.commands.resume(ids[0], "a", "done", {"id": 7}, "ann")
    assert control.wait(ids[0], "completed", seconds=60) == "completed"
    assert control.outputs(ids[0]) == {"v": {"id": 7}}
    control.engine.commands.resume(ids[1], "a", "fail", None, "ann")
    assert control.wait(ids[1], "failed", seconds=60) == "failed"
    assert set(seen.called().values()) == {1}


def test_a_poison_step_is_stopped_at_exactly_n(workers: Workers) -> None:
    flow = define("steps: [{id: a, call: tool, with: {tool: noop}, retry: {max_crashes: 3}}]")
    control = workers.control
    run = None
    for _ in range(3):
        dying = workers.doomed("claim:1")
        run = run or control.run(flow)
        workers.died(dying)
    workers.start()
    assert run is not None
    assert control.wait(run, seconds=60) == "failed"
    assert '"poison"' in control.row(run).error
    step = control.steps(run)["a"]
    assert (step.attempt, step.crashes) == (3, 3)


def test_drain_gives_unfinished_steps_back(workers: Workers, seen: Witness) -> None:
    flow = define("steps: [{id: a, call: tool, with: {tool: apply.keyed, args: {delay_ms: 2000}}}]")
    control = workers.control
    process = workers.start(AIRI_RUNS_DRAIN_MS="100")
    run = control.run(flow)
    until(lambda: seen.calls)
    code, seconds = workers.stop(process)
    assert code == 0
    assert seconds < 15
    workers.start()
    assert control.wait(run, seconds=60) == "completed"
    assert set(seen.applied().values()) == {1}
    assert control.steps(run)["a"].crashes == 0
