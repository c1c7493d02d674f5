"""What the control plane does by the clock: notices, the ledger, the reaper, the rebuild of money, the sweeps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from airi.clock import unix_ms
from airi.config.notify import Notifier
from airi.stored_responses import ResponseStore
from gateway.control.services import Services
from policies.epoch import rebuild
from policies.ledger import LedgerConsumer
from policies.reaper import Reaper

_log = logging.getLogger("airi.control.background")
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Chore:
    """A piece of work done again and again. ``work`` is blocking and may raise: it is tried again at its next turn."""

    name: str
    every_s: float
    work: Callable[[], object]


def chores(services: Services) -> list[Chore]:
    """Return the control plane's chores."""
    engine, redis = services.engine, services.redis
    reaper, consumer = Reaper(engine, redis), LedgerConsumer(engine, redis)
    notifier = Notifier(engine, redis)
    responses = ResponseStore(engine, services.content)
    return [
        Chore("notices", 1.0, notifier.run_once),
        Chore("rebuild", 0.5, lambda: rebuild(engine, redis)),
        Chore("ledger", 0.2, consumer.catch_up),
        Chore("reaper", 1.0, reaper.run_once),
        Chore("reaper sweep", 600.0, reaper.sweep),
        Chore("responses sweep", 60.0, lambda: responses.sweep(unix_ms())),
        Chore("content sweep", 60.0, lambda: services.content.sweep(unix_ms())),
    ]


class Background:
    """One thread a chore; a chore that fails says so once and goes on trying."""

    def __init__(self, work: Iterable[Chore]) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(chore,), name=chore.name, daemon=True) for chore in work
        ]

    def start(self) -> None:
        """Start every chore; each is done at once, then by its clock."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each chore end its turn."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _run(self, chore: Chore) -> None:
        failing = ""
        while not self._stop.is_set():
            try:
                chore.work()
                failing = ""
            except Exception as error:  # noqa: BLE001  # Redis or SQL is away: the chore is what repairs things afterwards
                if type(error).__name__ != failing:
                    failing = type(error).__name__
                    _log.warning(
                        "%s cannot be done now; it is tried again", chore.name, extra={"error": repr(error)}
                    )
            self._stop.wait(chore.every_s)
