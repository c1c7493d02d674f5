"""What one process remembers of its reservations: without a socket or a clock, so that a simulation can drive it.

A reservation is in the book from the moment it may exist in Redis until Redis has confirmed its settlement. After
that the *entry* stays until SQL has it (the stream's watermark), because Redis may still lose it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any

from airi.redis_pipeline import bulk
from policies.admission.scripts import SCRIPTS, Scripts
from policies.admission.wire import ENCODER, RECORD, SETTLEMENT, Entry, Report, Request, SettlementWire


class Next(Enum):
    """What a settlement's answer asks for."""

    DONE = "done"
    RESTORE = "restore"
    WAIT = "wait"


class OpenCall:
    """One reservation that is not settled yet."""

    __slots__ = (
        "cost",
        "epoch",
        "id",
        "lease_ms",
        "limits_bulk",
        "opened",
        "prefix_bulk",
        "record",
        "renewed",
        "request",
        "sending",
        "settlement",
        "waiter",
    )

    def __init__(
        self, request: Request, prefix_bulk: bytes, limits_bulk: bytes, record: bytes | None, now: float
    ) -> None:
        self.id = request.reservation_id
        self.request = request
        self.prefix_bulk = prefix_bulk
        self.limits_bulk = limits_bulk
        self.record = record
        """As Redis wrote it; ``None`` when the call was admitted without Redis, or its admission was given up."""
        self.epoch = ""
        """In which Redis was last known to have it."""
        self.lease_ms = request.lease_ms
        self.opened = now
        self.renewed = now
        self.cost = 0
        self.settlement: bytes | None = None
        self.sending = False
        self.waiter: asyncio.Future[None] | None = None
        """Resolved when the settlement is confirmed, if somebody waits for that."""


class Book:
    """Open reservations and unconfirmed entries of a process. ``identity`` must be set at each connect."""

    def __init__(self, process: str, *, scripts: Scripts = SCRIPTS, max_unconfirmed: int = 10_000) -> None:
        self.process = process
        self.open: dict[str, OpenCall] = {}
        self.unconfirmed: deque[tuple[tuple[int, int], bytes]] = deque(maxlen=max_unconfirmed)
        self._scripts = scripts
        self._admit_head = scripts.admit.head(1, 4)
        self._settle_head = scripts.settle.head(1, 2)
        self.epoch = ""
        self._epoch = b""
        self._identity = b""
        self._reported: list[tuple[tuple[int, int], bytes]] = []
        self._reported_open: list[str] = []
        self.believe("")

    def believe(self, epoch: str) -> None:
        """Set the epoch in which this process may spend: the identity of the Redis server it is connected to."""
        self.epoch = epoch
        self._epoch = bulk(epoch.encode())
        self._identity = self._epoch + bulk(self.process.encode())

    def admit_command(self, prefix_bulk: bytes, limits_bulk: bytes, request: Request) -> bytes:
        """Return the command that asks for a reservation."""
        return b"".join(
            (self._admit_head, prefix_bulk, self._identity, limits_bulk, bulk(ENCODER.encode(request)))
        )

    def opened(
        self, request: Request, prefix_bulk: bytes, limits_bulk: bytes, record: bytes | None, now: float
    ) -> OpenCall:
        """Remember a reservation that exists, or may exist, in Redis."""
        call = self.open[request.reservation_id] = OpenCall(request, prefix_bulk, limits_bulk, record, now)
        return call

    def settling(self, settlement: SettlementWire) -> OpenCall | None:
        """Note what a call cost; ``None`` when it is settled already or was never opened."""
        call = self.open.get(settlement.reservation_id)
        if call is None or call.settlement is not None:
            return None
        call.settlement = ENCODER.encode(settlement)
        return call

    def settle_command(self, call: OpenCall) -> bytes:
        """Return the command that settles a call."""
        assert call.settlement is not None
        return b"".join((self._settle_head, call.prefix_bulk, self._epoch, bulk(call.settlement)))

    def restore_command(self, call: OpenCall) -> bytes:
        """Return the command that puts back a reservation that Redis does not know, whatever the limits say."""
        if call.record is None:
            forced = _forced(call.request)
            return self.admit_command(call.prefix_bulk, call.limits_bulk, forced)
        head = self._scripts.restore.head(1, 3)
        lease = bulk(b"%d" % call.lease_ms)
        return b"".join((head, call.prefix_bulk, bulk(call.id.encode()), bulk(call.record), lease))

    def answered(self, call: OpenCall, reply: list[Any]) -> Next:
        """Take in the answer to :meth:`settle_command`."""
        code = reply[0]
        if code == 4:
            return Next.WAIT
        # Redis forgets neither an open nor a reaped call: what it had in this epoch and does not know was settled, and
        # the answer to that was lost long ago.
        if code == 2 and (call.record is None or call.epoch != self.epoch):
            return Next.RESTORE
        if self.open.pop(call.id, None) is not None:
            if code == 0:
                self.unconfirmed.append((stream_id(reply[1]), reply[2]))
            elif code == 1 and len(reply) > 2 and call.record is not None:
                self.unconfirmed.append((stream_id(reply[1]), _entry(call, *reply[2:])))
        return Next.DONE

    def restored(self, call: OpenCall, reply: Any) -> None:
        """Take in the answer to :meth:`restore_command`."""
        if call.record is None and reply[0] == 0:
            call.record = reply[6]
        call.epoch = self.epoch

    def committed(self, watermark: bytes) -> None:
        """Forget entries up to the stream id that SQL has."""
        limit = stream_id(watermark)
        while self.unconfirmed and self.unconfirmed[0][0] <= limit:
            self.unconfirmed.popleft()

    def report(self) -> bytes:
        """Return what the rebuild of money must know (a :class:`Report`)."""
        self._reported = list(self.unconfirmed)
        self._reported_open = list(self.open)
        records = [call.record for call in self.open.values() if call.record is not None]
        return ENCODER.encode(Report(records, [entry for _, entry in self._reported]))

    def rebuilt(self) -> None:
        """The rebuild that this process reported to is done: SQL has the entries, Redis the open calls."""
        known = {entry for _, entry in self._reported}
        kept = [item for item in self.unconfirmed if item[1] not in known]
        self.unconfirmed.clear()
        self.unconfirmed.extend(kept)
        for name in self._reported_open:
            call = self.open.get(name)
            if call is not None:
                call.epoch = self.epoch
        self._reported, self._reported_open = [], []

    def renewals(self, now: float, max_age_s: float) -> Iterator[tuple[OpenCall, bytes]]:
        """Yield calls whose lease is a third old, each with its command; what is older than ``max_age_s`` is left."""
        head = self._scripts.renew.head(1, 3)
        for call in self.open.values():
            if call.settlement is not None or now - call.opened > max_age_s:
                continue
            if (now - call.renewed) * 3_000 >= call.lease_ms:
                call.renewed = now
                yield (
                    call,
                    b"".join(
                        (
                            head,
                            call.prefix_bulk,
                            bulk(b"%d" % call.lease_ms),
                            bulk(call.id.encode()),
                            bulk(b"%d" % call.cost),
                        )
                    ),
                )


def _entry(call: OpenCall, cause: bytes, amount: int, hold: int, excess: int) -> bytes:
    """The entry that Redis wrote when it settled a call, whose answer did not arrive (``settled_at`` is a guess)."""
    assert call.record is not None
    assert call.settlement is not None
    record = RECORD.decode(call.record)
    charged = [group.suffix + name[1:] for group in record.money for name in group.fields[::2]]
    return ENCODER.encode(
        Entry(
            f"{call.id}/{cause.decode()}",
            cause.decode(),
            amount,
            hold,
            excess,
            record.reserved_at_us,
            record.reserved_at_us,
            record.process,
            charged,
            record.request,
            SETTLEMENT.decode(call.settlement),
        )
    )


def _forced(request: Request) -> Request:
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    return Request(**(fields | {"forced": 1}))


def stream_id(text: bytes) -> tuple[int, int]:
    """Return a stream's id as numbers that compare rightly."""
    milliseconds, _, sequence = text.partition(b"-")
    return int(milliseconds), int(sequence or 0)
