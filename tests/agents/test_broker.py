"""Workers whose broker is away: absent at the start, killed, a replica, of no kind at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine as Database

from airi.embedded.redis import find_redis, prepare_redis, redis_command, wait_for_redis
from tests.agents.processes import ROOT, Workers
from tests.agents.rig import define, until

pytestmark = pytest.mark.integration
FLOW = "steps: [{id: a, call: tool, with: {tool: noop, args: {i: 7}}}]\noutputs: {i: '${{ steps.a.output }}'}"
NAP = "steps: [{id: a, call: tool, with: {tool: nap, args: {ms: 1000}}}]"
UNRECOVERABLE = """
import sys
from agents import consumer, worker

def broken(*_):
    raise RuntimeError("a fault of ours")

consumer.PatientConsumer.ensure_connected = broken
sys.exit(worker.main())
"""


class Broker:
    """A Redis of the test's own, which it may kill."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "broker.sock"
        self._folder = folder / "broker"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        prepare_redis(self.socket, self._folder)
        command = redis_command(find_redis(), socket_path=self.socket, directory=self._folder)
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for_redis(self.socket)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def replicate(self, *of: str) -> None:
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.execute_command("REPLICAOF", *of)


@pytest.fixture
def broker(home: Path, redis_server: str) -> Iterator[Broker]:
    made = Broker(home)
    yield made
    made.kill()


@pytest.fixture
def workers(any_engine: Database, home: Path, broker: Broker) -> Iterator[Workers]:
    made = Workers(any_engine, home, f"unix://{broker.socket}", "http://127.0.0.1:9", "http://127.0.0.1:9")
    try:
        yield made
    finally:
        made.close()


def _said(workers: Workers, words: str) -> Callable[[], bool]:
    """Whether the workers have logged the words since now."""
    before = len(workers.logged())
    return lambda: words in workers.logged()[before:]


def _completes(workers: Workers) -> None:
    run = workers.control.run(define(FLOW))
    assert workers.control.wait(run) == "completed"
    assert workers.control.outputs(run) == {"i": 7}


@pytest.mark.parametrize("any_engine", ["sqlite"], indirect=True)
def test_a_worker_outlives_its_broker(workers: Workers, broker: Broker) -> None:
    """Absent at the start, then killed, then a replica that refuses to serve: one and the same process goes on."""
    told = _said(workers, "the broker does not serve")
    worker, reading = workers.spawn()
    until(told)
    broker.start()
    workers.ready(worker, reading)
    _completes(workers)

    lost = _said(workers, "Connection to broker lost")
    busy = workers.control.run(define(NAP))
    until(lambda: "step.started a" in workers.control.types(busy))
    broker.kill()
    waiting = workers.control.run(define(FLOW))
    until(lost)
    assert workers.control.row(waiting).state == "running"
    assert workers.control.wait(busy) == "completed", "what a worker has begun needs no broker"
    broker.start()
    assert workers.control.wait(waiting) == "completed"
    assert workers.control.steps(busy)["a"].attempt == 1

    lost = _said(workers, "Connection to broker lost")
    broker.replicate("127.0.0.1", "1")
    until(lost)
    broker.replicate("NO", "ONE")
    _completes(workers)

    lost = _said(workers, "Connection to broker lost")
    broker.kill()
    until(lost)
    assert workers.stop(worker)[0] == 0
    assert {json.loads(line)["pid"] for line in workers.logged().splitlines() if line[0] == "{"} == {
        worker.pid
    }


@pytest.mark.parametrize("any_engine", ["sqlite"], indirect=True)
def test_a_worker_that_cannot_go_on_says_so_with_its_exit_code(workers: Workers, broker: Broker) -> None:
    """Whoever restarts only what has failed restarts it."""
    broker.start()
    environment = {**workers.environment, "AIRI_RUNS_DRAIN_MS": "100"}
    for words, url, code, says in (
        (["-c", UNRECOVERABLE], workers.broker_url, 1, "Unrecoverable error"),
        (["-m", "agents.worker"], "redsi://:a-password@host:x/1", 2, "AIRI_BROKER_URL: expected an address"),
    ):
        ended = subprocess.run(
            [sys.executable, *words], cwd=ROOT, env={**environment, "AIRI_BROKER_URL": url}, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == code, ended.stderr
        assert any(says in json.loads(line)["message"] for line in ended.stderr.splitlines())
        assert "a-password" not in ended.stderr
