"""Settlements on their way to Redis: sent at once, again until confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from airi.errors import UnavailableError
from airi.redis_pipeline import PipelinedRedis
from policies.admission.book import Book, Next, OpenCall
from policies.admission.scripts import Scripts
from policies.admission.wire import SettlementWire


class Settler:
    """Sends what the book holds. ``on_wait`` is called when Redis says that money is being rebuilt."""

    def __init__(
        self, redis: PipelinedRedis, book: Book, scripts: Scripts, on_wait: Callable[[], None]
    ) -> None:
        self._redis = redis
        self._book = book
        self._scripts = scripts
        self._on_wait = on_wait

    def note(self, settlement: SettlementWire) -> None:
        """Take a settlement and send it; once for each reservation, whatever comes later."""
        call = self._book.settling(settlement)
        if call is not None:
            self._send(call)

    def send_again(self) -> None:
        """Send what is noted and not confirmed."""
        for call in list(self._book.open.values()):
            if call.settlement is not None:
                self._send(call)

    async def confirmed(self, reservation_id: str, timeout_ms: int) -> bool:
        """Wait until a noted settlement stands in Redis; ``False`` when it does not within ``timeout_ms``."""
        call = self._book.open.get(reservation_id)
        if call is None:
            return True
        if call.waiter is None:
            call.waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                await asyncio.shield(call.waiter)
        except TimeoutError:
            return False
        return True

    def _send(self, call: OpenCall) -> None:
        if call.sending:
            return
        try:
            future = self._redis.send(self._book.settle_command(call), self._scripts.settle)
        except UnavailableError:
            return  # stays in the book; the beat tries again
        call.sending = True
        future.add_done_callback(partial(self._settled, call))

    def _settled(self, call: OpenCall, future: asyncio.Future[Any]) -> None:
        call.sending = False
        if future.cancelled() or future.exception() is not None:
            return  # not known whether it was done; it is idempotent, the beat tries again
        step = self._book.answered(call, future.result())
        if step is Next.DONE and call.waiter is not None and not call.waiter.done():
            call.waiter.set_result(None)
        elif step is Next.WAIT:
            self._on_wait()
        elif step is Next.RESTORE:
            self._restore(call)

    def _restore(self, call: OpenCall) -> None:
        """Redis does not know the reservation (admitted without Redis, or lost): put it on the books, settle again."""
        script = self._scripts.admit if call.record is None else self._scripts.restore
        try:
            future = self._redis.send(self._book.restore_command(call), script)
        except UnavailableError:
            return
        call.sending = True
        future.add_done_callback(partial(self._restored, call))

    def _restored(self, call: OpenCall, future: asyncio.Future[Any]) -> None:
        call.sending = False
        if not future.cancelled() and future.exception() is None:
            self._book.restored(call, future.result())
            self._send(call)
