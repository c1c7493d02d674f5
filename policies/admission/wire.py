"""What travels between the gateway, admission's scripts and the ledger, as MessagePack arrays.

Lua reads these arrays by position, so the order of fields is part of the scripts (``lua/common.lua``). There is no
``nil`` in them: an absent text is ``""``, an absent amount is ``-1``.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import msgspec


class Request(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A reservation's request: what it asks for and for whom. Money in micro-dollars."""

    reservation_id: str
    tenant: str
    team: str
    key_id: str
    user: str
    model: str
    run_id: str
    step: str
    trace_id: str
    tokens: int
    """Charged to tokens a minute: input and estimated output."""
    input_usd_micros: int
    output_usd_micros_per_million: int
    """Price of a million output tokens at the dearest reachable target, times the number of choices."""
    min_output_tokens: int
    output_tokens: int
    """The output that is wished for; a hard budget may grant less, never less than the minimum."""
    estimate_usd_micros: int
    lease_ms: int
    claim: str = ""
    body_digest: str = ""
    run_budget_usd_micros: int = -1
    forced: int = 0
    """1: no limit is asked (a call that was admitted while Redis was away is put on the books)."""
    user_suffix: str = ""


class SettlementWire(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a call cost. ``tokens`` is what tokens a minute are charged for."""

    reservation_id: str = ""
    usd_micros: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    outcome: str = ""
    reply_reference: str = ""
    tombstone: int = 0
    version: str = ""
    target: str = ""
    trace_id: str = ""
    usage_source: str = ""
    price_source: str = ""
    simulated: int = 0


class MoneyGroup(msgspec.Struct, array_like=True, frozen=True):
    """The budgets of one calendar window that a reservation holds money on."""

    suffix: str
    fields: list[str]
    holds: list[int]


class SlotGroup(msgspec.Struct, array_like=True, frozen=True):
    """Concurrency taken and token rates charged on one hash."""

    suffix: str
    fields: list[str]
    us_per_token: list[float]
    """0 where tokens are not limited."""
    lines_us: list[float]
    counted: list[int]
    """1 where the call counts as running."""


class Record(msgspec.Struct, array_like=True, frozen=True):
    """A reservation as Redis keeps it (RECORD in ``lua/common.lua``)."""

    state: str
    process: str
    reserved_at_us: int
    hold_usd_micros: int
    worst_usd_micros: int
    granted: int
    money: list[MoneyGroup]
    slots: list[SlotGroup]
    request_length: int
    request: Request


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A ledger entry as the stream carries it. ``cause`` is ``settled``, ``reaped`` or ``late``."""

    entry_id: str
    cause: str
    usd_micros: int
    hold_usd_micros: int
    excess_usd_micros: int
    """What the upstream cost beyond the worst case that was sent and promised."""
    reserved_at_us: int
    settled_at_us: int
    process: str
    charged: list[str]
    """Counters that the amount went to: ``m:LETTER:START|SCOPE|BUDGET``."""
    request: Request
    settlement: SettlementWire


class Counters(NamedTuple):
    """Rates and concurrency of one scope as Redis keeps them (COUNTERS in ``lua/common.lua``)."""

    requests_line_us: float
    tokens_line_us: float
    running: float

    @classmethod
    def decode(cls, raw: bytes) -> Counters:
        """Read a field of the hash."""
        return cls(*_COUNTERS.unpack(raw))


class Report(msgspec.Struct, frozen=True):
    """What a process knows when money is rebuilt: its open reservations and settlements that SQL may not have."""

    open: list[bytes]
    settled: list[bytes]


_COUNTERS = struct.Struct("<ddd")
ENCODER = msgspec.msgpack.Encoder()
RECORD = msgspec.msgpack.Decoder(Record)
ENTRY = msgspec.msgpack.Decoder(Entry)
SETTLEMENT = msgspec.msgpack.Decoder(SettlementWire)
REPORT = msgspec.msgpack.Decoder(Report)


def state_of(raw: bytes) -> str:
    """Return the state of what stands under ``r:ID`` (tombstones are shorter than records)."""
    value: Any = msgspec.msgpack.decode(raw)
    return str(value[0])
