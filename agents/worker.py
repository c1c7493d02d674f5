"""The worker process: Celery takes the hints, the runtime does the work, the caretaker mends what was lost.

``python -m agents.worker`` (or ``airi worker``). SIGTERM: no new work, running steps get some time to end, the rest
is given back to other workers, exit 0.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from types import FrameType

from celery import Celery
from celery.worker import WorkController, state

from agents import faults
from agents.assembly import secrets_of, work_maker
from agents.caretaker import Caretaker
from agents.celery_app import ADVANCE, EXECUTE, QUEUE, Sender, make_app
from agents.consumer import PatientConsumer
from agents.documents import FreshDocument
from agents.engine import Engine, open_runs
from agents.runtime import Runtime
from agents.tools.functions import load_tools
from agents.tools.toolbox import ToolBox
from agents.tuning import Tuning
from airi.config.secrets import SecretResolver
from airi.config.store import ConfigStore
from airi.database import open_engine
from airi.errors import AiriError, ConfigError
from airi.keyring import KeyRing
from airi.logs import configure
from airi.settings import Settings
from airi.storage import prepare
from airi.up.ready import notify_ready
from observability.emitter import Emitter

logger = logging.getLogger(__name__)
PROCESS = "worker"


class Worker:
    """Everything that one worker process is made of."""

    def __init__(self, settings: Settings, tuning: Tuning) -> None:
        ring = KeyRing.open_for(settings)
        self._tuning = tuning
        self.engine: Engine = open_runs(settings, ring, tuning)
        database = open_engine(settings.effective_database_url, full_sync=True)
        prepare(database)
        document = FreshDocument(ConfigStore(database).current)
        box = ToolBox(
            document, secrets_of(SecretResolver(database, ring)), newest=partial(document, anew=True)
        )
        self._emitter = Emitter(settings.writer_socket, PROCESS)
        self.runtime = Runtime(
            self.engine.leases, work_maker(self.engine, settings, ring, box, self._emitter, PROCESS), tuning
        )
        self.app: Celery = _usable(make_app(settings.effective_broker_url))
        self._register_tasks()
        self.caretaker = Caretaker(
            self.engine.store, self.engine.commands, self.engine.leases, Sender(lambda: self.app), tuning
        )
        self._controller: WorkController | None = None
        self._pulse = threading.Event()

    def _register_tasks(self) -> None:
        """The two tasks. What they are told is checked in the database, so any message may come at any time."""

        def execute(run_id: str, path: str, fence: int) -> None:
            self.runtime.execute(run_id, path, fence)
            faults.point("ack")

        def advance(run_id: str) -> None:
            try:
                self.engine.commands.advance(run_id)
            except AiriError as error:  # a run that is gone; the message has no other reader
                logger.warning("a run could not be advanced: %s", error.message)
            faults.point("ack")

        self.app.task(name=EXECUTE)(execute)
        self.app.task(name=ADVANCE)(advance)

    def run(self) -> int:
        """Work until SIGTERM or SIGINT; return the exit code: not 0 when Celery could not go on."""
        self.runtime.start()
        asyncio.run_coroutine_threadsafe(self._emitter.start(), self.runtime.loop).result(5)
        self.caretaker.start()
        threading.Thread(target=self._gauges, name="gauges", daemon=True).start()
        self._controller = self.app.WorkController(
            pool="threads", concurrency=self._tuning.threads, queues=[QUEUE], without_mingle=True,
            without_gossip=True, without_heartbeat=True, hostname=f"airi@{self.engine.owner.replace('/', '-')}",
            loglevel="WARNING", ready_callback=self._on_ready, consumer_cls=PatientConsumer,
        )  # fmt: skip
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._controller.start()
        self.close()
        return int(self._controller.exitcode or 0)

    def _on_ready(self, _consumer: object) -> None:
        logger.info("worker ready")
        notify_ready()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        logger.info("worker drains (%s)", signal.Signals(number).name)
        self.runtime.draining = True
        state.should_stop = 0  # Celery's consumer looks at it in its loop and shuts down

    def _gauges(self) -> None:
        """Tell the writer once a second what this process is doing."""
        while not self._pulse.wait(1.0):
            self._emitter.gauge("worker_steps", float(self.runtime.busy))

    def close(self) -> None:
        """Drain and stop."""
        self.runtime.drain()
        self.caretaker.close()
        self._pulse.set()
        asyncio.run_coroutine_threadsafe(self._emitter.close(2.0), self.runtime.loop).result(10)
        self.runtime.close()


def _usable(app: Celery) -> Celery:
    """Refuse a broker's address that no broker can have; one that does not answer is waited for."""
    try:
        app.connection_for_read()  # made, not opened
    except (KeyError, ImportError, ValueError) as error:  # its words may hold parts of a password
        raise ConfigError(
            [f"AIRI_BROKER_URL: expected an address such as redis://host:6379/1 ({type(error).__name__})"]
        ) from error
    return app


def main() -> int:
    """Start, work, drain; return the exit code."""
    configure(PROCESS)
    logging.getLogger("celery").setLevel(logging.WARNING)  # it tells two lines a message
    started = time.monotonic()
    try:
        settings = Settings.from_environment()
        tuning = Tuning.from_environment()
        load_tools()
        worker = Worker(settings, tuning)
    except ConfigError as error:
        for problem in error.problems:
            logger.error("%s", problem)  # noqa: TRY400  # the person's configuration, not our code
        return 2
    except ValueError as error:
        logger.error("%s", error)  # noqa: TRY400  # a setting that cannot be understood needs no stack trace
        return 2
    logger.info("worker built in %d ms", (time.monotonic() - started) * 1000)
    return worker.run()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # a thread that is stuck in somebody's function must not keep the process
