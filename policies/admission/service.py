"""Admission and settlement for one process of the data plane.

Redis away (declared behaviour): a call with a hard budget, a run's grant or an idempotency key is refused (503);
others pass under :class:`LocalCap` and are put on the books when Redis is back. A settlement is kept and tried again
until Redis confirms it, through reconnects and rebuilds; what is unsettled is bounded by refusing new calls at
``max_open``, so no settlement is ever dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airi.errors import UnavailableError
from airi.redis_pipeline import PipelinedRedis, RedisAwayError, RedisBusyError, RedisReplyError
from policies.admission.book import Book, OpenCall
from policies.admission.encoding import settlement_wire, to_wire
from policies.admission.estimate import OutputEstimate
from policies.admission.local_cap import LocalCap
from policies.admission.scripts import PROCESSES, REBUILD, SCRIPTS, Scripts
from policies.admission.settling import Settler
from policies.admission.types import (
    AdmissionRequest,
    Admitted,
    Conflicting,
    Decision,
    InProgress,
    Rate,
    Refused,
    Replay,
    Settlement,
)
from policies.admission.wire import Request, SettlementWire
from policies.names import is_epoch_of

_REBUILD_REPORT_TTL_MS = 600_000


@dataclass(frozen=True, slots=True)
class AdmissionOptions:
    """Bounds. ``max_backlog``: ledger entries in Redis that SQL does not have yet, beyond which calls are refused."""

    max_open: int = 20_000
    max_backlog: int = 200_000
    beat_ms: int = 1_000
    rebuild_beat_ms: int = 25
    epoch_wait_ms: int = 300
    """How long a call with a budget waits for money to be (re)built before it is refused."""
    local_requests_per_minute: int = 600
    processes: int = 1
    max_call_ms: int = 3_600_000
    """A call older than this is not renewed any more: the reaper takes it."""


class Admission:
    """Reserve, settle, renew; one for each process. ``process`` names it: see :func:`policies.epoch.process_name`."""

    def __init__(
        self,
        redis: PipelinedRedis,
        process: str,
        options: AdmissionOptions | None = None,
        *,
        scripts: Scripts = SCRIPTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._options = options or AdmissionOptions()
        self._scripts = scripts
        self._clock = clock
        self._book = Book(process, scripts=scripts)
        self._settler = Settler(redis, self._book, scripts, self._wait_for_epoch)
        self._cap = LocalCap(self._options.local_requests_per_minute, self._options.processes)
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._backlog = 0
        self._reported = ""
        self.estimate = OutputEstimate()
        self.snapshot = 0
        self.keys = 0
        self._ready = asyncio.Event()

    @property
    def money_ready(self) -> bool:
        """Whether budgets can be charged: Redis is there and money is not being rebuilt (as of the last beat)."""
        return self._ready.is_set()

    @property
    def open(self) -> int:
        """How many reservations are not settled and confirmed."""
        return len(self._book.open)

    async def start(self) -> None:
        """Begin to beat (leases, retries, reports). The connection may come up later."""
        self.attach()
        if self._redis.connected:
            with contextlib.suppress(UnavailableError):
                await self.beat()
        self._task = asyncio.create_task(self._beat_on(), name="admission-beat")

    def attach(self) -> None:
        """Follow the connection without beating (:meth:`start` does both)."""
        self._redis.on_connect.append(self._connected)
        if self._redis.connected:
            self._connected()

    async def close(self, drain_ms: int = 5_000) -> None:
        """Wait until every noted settlement is confirmed (at most ``drain_ms``), then stop."""
        deadline = time.monotonic() + drain_ms / 1_000
        while any(call.settlement for call in self._book.open.values()) and time.monotonic() < deadline:
            self._wake.set()
            await asyncio.sleep(0.02)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._connected in self._redis.on_connect:
            self._redis.on_connect.remove(self._connected)
        with contextlib.suppress(UnavailableError):
            await self._redis.execute("HDEL", PROCESSES, self._book.process)

    # -- reserve

    async def reserve(self, request: AdmissionRequest) -> Decision:
        """Ask for a reservation on all scopes of a call, in one round trip. Does not raise but for cancellation."""
        if len(self._book.open) >= self._options.max_open:
            return _unavailable("this process has too many unsettled calls")
        if self._backlog > self._options.max_backlog:
            return _unavailable("the ledger lags too far behind; is the control plane up?")
        wire = to_wire(request)
        answer = await self._ask(request, wire)
        if isinstance(answer, Refused) and answer.kind == "epoch" and await self._wait_for_money():
            return await self._ask(request, wire)
        return answer

    async def _ask(self, request: AdmissionRequest, wire: Request) -> Decision:
        scopes = request.scopes
        command = self._book.admit_command(scopes.prefix_bulk, scopes.limits_bulk, wire)
        try:
            reply = await self._redis.send(command, self._scripts.admit)
        except asyncio.CancelledError:
            self._give_up(request, wire)
            raise
        except UnavailableError as error:
            return self._without_redis(request, wire, error)
        return self._decide(request, wire, reply)

    async def _wait_for_money(self) -> bool:
        """Wait a little for a rebuild, or for the first beat on a new connection."""
        if self._options.epoch_wait_ms == 0:
            return False
        try:
            async with asyncio.timeout(self._options.epoch_wait_ms / 1_000):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    def _decide(self, request: AdmissionRequest, wire: Request, reply: list[Any]) -> Decision:
        self.snapshot, self.keys = int(reply[1]), int(reply[2])
        if self._book.unconfirmed:
            self._book.committed(reply[3])
        match reply[0]:
            case 0:
                granted, hold, record, lr, rr, tr, lt, rt, tt = reply[4:]
                self._book.opened(
                    wire, request.scopes.prefix_bulk, request.scopes.limits_bulk, record, self._clock()
                )
                return Admitted(
                    wire.reservation_id,
                    granted,
                    hold,
                    self.snapshot,
                    self.keys,
                    Rate(lr, rr, tr) if lr >= 0 else None,
                    Rate(lt, rt, tt) if lt >= 0 else None,
                )
            case 1:
                kind, scope, limit, remaining, retry_ms = reply[4:]
                if kind == b"epoch":
                    self._wait_for_epoch()
                return Refused(
                    kind.decode(), scope.decode(), limit, remaining, retry_ms, self.snapshot, self.keys
                )
            case 2:
                return Replay(reply[4].decode())
            case 3:
                return InProgress(max(1, reply[4]))
            case 4:
                return Conflicting()
        return _unavailable("the reservation's id was used before")

    def _without_redis(self, request: AdmissionRequest, wire: Request, error: UnavailableError) -> Decision:
        strict = (
            request.scopes.has_hard
            or request.run_budget_usd_micros is not None
            or request.idempotency is not None
            or isinstance(error, RedisReplyError | RedisBusyError)
        )
        wait_s = 0.0 if strict else self._local_wait(request)
        if strict or wait_s > 0:
            if not (
                isinstance(error, RedisBusyError) or (isinstance(error, RedisAwayError) and not error.sent)
            ):
                self._give_up(request, wire)
            if wait_s > 0:
                return Refused(
                    "requests", "this process while Redis is away", retry_after_ms=int(wait_s * 1_000) + 1
                )
            return _unavailable("limits and budgets cannot be checked: Redis is away")
        self._book.opened(wire, request.scopes.prefix_bulk, request.scopes.limits_bulk, None, self._clock())
        return Admitted(wire.reservation_id, wire.output_tokens, 0, self.snapshot, self.keys, degraded=True)

    def _local_wait(self, request: AdmissionRequest) -> float:
        scopes = request.scopes
        return self._cap.allow(scopes.tenant, scopes.requests_per_minute(), self._clock())

    def _give_up(self, request: AdmissionRequest, wire: Request) -> None:
        """The caller does not wait for the answer: whatever Redis does with the command, nothing stays held."""
        self._book.opened(wire, request.scopes.prefix_bulk, request.scopes.limits_bulk, None, self._clock())
        self._settler.note(
            SettlementWire(reservation_id=wire.reservation_id, outcome="given_up", tombstone=1)
        )

    # -- settle

    def settle(self, settlement: Settlement) -> None:
        """Note what a call cost and send it; confirmed in the background. Idempotent by reservation; never raises."""
        self._settler.note(settlement_wire(settlement))

    async def confirmed(self, reservation_id: str, timeout_ms: int) -> bool:
        """Wait until a noted settlement stands in Redis; ``False`` when it does not within ``timeout_ms``."""
        return await self._settler.confirmed(reservation_id, timeout_ms)

    def release(self, reservation_id: str, outcome: str = "released") -> None:
        """Settle a call that was never sent, at nothing; its ledger entry says so."""
        self._settler.note(SettlementWire(reservation_id=reservation_id, outcome=outcome))

    def progress(self, reservation_id: str, usd_micros: int) -> None:
        """Say what a running stream has cost so far: soft budgets' holds grow with the next renewal."""
        call = self._book.open.get(reservation_id)
        if call is not None:
            call.cost = usd_micros

    # -- beat

    def _connected(self) -> None:
        self._book.believe("")  # until a beat has asked this server
        self._wait_for_epoch()

    def _wait_for_epoch(self) -> None:
        """A script said that money is not built for this process' epoch: ask soon."""
        self._ready.clear()
        self._wake.set()

    async def _beat_on(self) -> None:
        while True:
            try:
                await self.beat()
            except UnavailableError:
                self._ready.clear()
            beat_ms = self._options.beat_ms if self.money_ready else self._options.rebuild_beat_ms
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(beat_ms / 1_000):
                    await self._wake.wait()
            if not self.money_ready:  # woken by every refused call: not faster than the rebuild's beat
                await asyncio.sleep(self._options.rebuild_beat_ms / 1_000)
            self._wake.clear()

    async def beat(self) -> None:
        """Say that this process lives, take part in a rebuild, renew leases, send what is unconfirmed again."""
        reply = await self._redis.evalsha(self._scripts.heartbeat, ["airi:"], [self._book.process])
        epoch, rebuild, snapshot, keys, watermark, self._backlog = reply
        self.snapshot, self.keys = int(snapshot), int(keys)
        if is_epoch_of(epoch.decode(), self._redis.run_id):
            self._book.believe(epoch.decode())
            if self._reported:
                self._book.rebuilt()
                self._reported = ""
            self._book.committed(watermark)
            self._ready.set()
            self._settler.send_again()
        else:
            self._ready.clear()
            if rebuild:
                await self._report(rebuild.decode())
        for _, command in list(self._book.renewals(self._clock(), self._options.max_call_ms / 1_000)):
            self._redis.send(command, self._scripts.renew).add_done_callback(_ignore)

    async def _report(self, rebuild: str) -> None:
        if rebuild == self._reported:
            return
        report = self.report(rebuild)
        try:
            await self._redis.execute("HSET", f"{REBUILD}:{rebuild}", self._book.process, report)
            await self._redis.execute("PEXPIRE", f"{REBUILD}:{rebuild}", _REBUILD_REPORT_TTL_MS)
        except UnavailableError:
            self._reported = ""  # said again with the next beat
            raise

    def report(self, rebuild: str) -> bytes:
        """Return what a rebuild must know of this process, and remember that it was told."""
        self._reported = rebuild
        return self._book.report()

    def calls(self) -> list[OpenCall]:
        """Return the reservations that are not settled and confirmed."""
        return list(self._book.open.values())


def _ignore(future: asyncio.Future[Any]) -> None:
    """A renewal that failed is made again with the next beat."""
    if not future.cancelled():
        future.exception()


def _unavailable(message: str) -> Refused:
    return Refused("unavailable", message, retry_after_ms=1_000)
