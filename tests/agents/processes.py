"""Real worker processes over a real broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine as Database

from agents.caretaker import Caretaker
from agents.celery_app import Sender, make_app
from tests.agents.rig import FAST, Rig

ROOT = Path(__file__).resolve().parents[2]


class Workers:
    """Starts workers; plays the control plane (which has a caretaker of its own) in this process."""

    def __init__(self, database: Database, home: Path, redis_url: str, gateway: str, witness: str) -> None:
        from tests.agents.rig import RING  # the key that tests and workers share

        path = redis_url.removeprefix("unix://").partition("?")[0]
        self.broker_url = f"redis+socket://{path}?virtual_host=1"
        url = database.url.render_as_string(hide_password=False)
        self.environment = {
            **os.environ,
            "AIRI_HOME": str(home),
            "AIRI_BROKER_URL": self.broker_url,
            "AIRI_GATEWAY_URL": gateway,
            "AIRI_SECRET_KEY": "tests-" + "x" * 40,
            "AIRI_DATABASE_URL": url.replace("+psycopg", ""),
            "AIRI_TOOLS_PATH": str(ROOT / "tests/agents/worker_tools.py"),
            "AIRI_RUNS_REAP_MS": "100",
            "AIRI_RUNS_WATCH_MS": "50",
            "AIRI_RUNS_REPUBLISH_MS": "1000",
            "AIRI_RUNS_DRAIN_MS": "2000",
            "WITNESS": witness,
        }
        assert RING is not None
        self.control = Rig(database, work=False)
        self.caretaker = Caretaker(
            self.control.engine.store, self.control.engine.commands, self.control.engine.leases,
            Sender(partial(make_app, self.broker_url)), FAST,
        )  # fmt: skip
        self.caretaker.start()
        self.log = (home / "workers.log").open("ab")
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """A worker; ready when it returns."""
        process, reading = self.spawn(**environment)
        self.ready(process, reading)
        return process

    def spawn(self, **environment: str) -> tuple[subprocess.Popen[bytes], int]:
        """A worker, and where it says that it is ready."""
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "agents.worker"], cwd=ROOT, pass_fds=(writing,), stderr=self.log,
            env={**self.environment, "AIRI_READY_FD": str(writing), **environment},
        )  # fmt: skip
        os.close(writing)
        self.processes.append(process)
        return process, reading

    def doomed(self, point: str) -> subprocess.Popen[bytes]:
        """A worker that kills itself at a named point: what others left behind may lead it there before it is ready."""
        process, reading = self.spawn(AIRI_FAULT_POINT=point)
        os.close(reading)
        return process

    def ready(self, process: subprocess.Popen[bytes], reading: int) -> None:
        """Wait until it says so."""
        said = os.read(reading, 16)
        os.close(reading)
        if said != b"READY\n":
            process.kill()
            raise AssertionError(f"the worker did not start: {self.logged()[-2000:]}")

    def logged(self) -> str:
        """What all workers have logged."""
        return Path(self.log.name).read_text()

    def close(self) -> None:
        self.caretaker.close()
        self.control.runtime.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(10)
        self.log.close()

    def died(self, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
        """Wait until a worker was killed by SIGKILL."""
        assert process.wait(seconds) == -signal.SIGKILL

    def stop(self, process: subprocess.Popen[bytes]) -> Any:
        """SIGTERM; return the exit code and how long it took."""
        started = time.monotonic()
        process.terminate()
        return process.wait(20), time.monotonic() - started
