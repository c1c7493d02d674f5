"""What is true in a history of :mod:`bench.interleavings`, kept beside the code under test, and the invariants:

- **No hard budget is overspent**: over all calls that a caller was told to go with, the sum of costs (known, or the worst
  case that was promised while it is not known) stays within every hard budget's window. What an upstream adds beyond
  the promised worst case is not counted. The one hole that ``policies/epoch.py`` names is measured, and must be nothing
  else: calls of a dead process, opened after the reaper's last pass, lost with Redis' data.
- **Concurrency** never exceeds a limit, requests never exceed GCRA's bound (both since Redis last lost data).
- **One key, one paid answer**: a call whose idempotency key has a finished reply is replayed.
- At the end: nothing held, nothing running, every settled call has one entry of exactly its cost (or a reaped one and
  its difference), nobody else is charged, and the books balance to the micro-dollar.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from airi.config.document import ConfigDocument
from airi.config.kinds import Tenant
from airi.keys.record import KeyLimits, KeyRecord
from bench.admission_world import SIM_SCRIPTS, Process
from policies.admission import AdmissionRequest, Admitted, Decision, Refused, Replay, Settlement
from policies.admission.wire import RECORD, Counters, state_of
from policies.ledger import verify
from policies.limits import LimitTable, Scopes
from policies.names import prefix
from policies.schema import LEDGER, OPEN

if TYPE_CHECKING:
    from bench.interleavings import History

_TENANTS: tuple[dict[str, Any], ...] = (
    {
        "metadata": {"name": "hard"},
        "limits": {"requests_per_minute": 30, "concurrent_calls": 6},
        "budgets": [
            {"name": "month", "usd": 0.006, "window": "month"},
            {"name": "minute", "usd": 0.002, "window": "minute"},
            {"name": "hint", "usd": 0.02, "window": "day", "mode": "soft"},
        ],
        "teams": [
            {
                "name": "a",
                "limits": {"concurrent_calls": 3},
                "budgets": [{"name": "d", "usd": 0.0015, "window": "day"}],
            }
        ],
        "model_limits": {
            "m": {"tokens_per_minute": 20_000, "budgets": [{"name": "w", "usd": 0.004, "window": "week"}]}
        },
    },
    {
        "metadata": {"name": "soft"},
        "limits": {"tokens_per_minute": 5_000},
        "user_limits": {"concurrent_calls": 2},
        "budgets": [{"name": "h", "usd": 0.003, "window": "hour", "mode": "soft"}],
    },
    {"metadata": {"name": "free"}, "limits": {"requests_per_minute": 20, "concurrent_calls": 4}},
)


class InvariantBrokenError(AssertionError):
    """What must hold does not."""


def _scopes() -> list[Scopes]:
    table = LimitTable(
        ConfigDocument.of(Tenant.model_validate({"kind": "Tenant", **tenant}) for tenant in _TENANTS)
    )
    keys = [
        KeyRecord(id="k1", tenant="", digest=b""),
        KeyRecord(
            id="k2", tenant="", digest=b"", limits=KeyLimits(concurrent_calls=2, tokens_per_minute=4_000)
        ),
    ]
    found = [
        table.scopes_for("hard", team, key, None, model)
        for team in (None, "a")
        for key in keys
        for model in ("m", "n")
    ]
    return [
        *found,
        table.scopes_for("soft", None, keys[0], None, "m"),
        table.scopes_for("free", None, keys[1], None, "m"),
    ]


SCOPES = _scopes()
LIMITS = {
    (scopes.tenant, f"{part.scope}|{budget.name}"): budget.usd
    for scopes in SCOPES
    for part in scopes.parts
    for budget in part.budgets
    if budget.mode == "hard"
}


@dataclass
class Call:
    """One call as its caller lives it."""

    request: AdmissionRequest
    process: Process
    generation: int
    asked_us: int
    must_replay: bool
    task: asyncio.Task[None] | None = None
    answer: Decision | None = None
    dead: bool = False
    lost: bool = False
    settlement: Settlement | None = None
    worst: int = 0
    counters: list[tuple[str, str]] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        return self.request.scopes.tenant

    @property
    def running(self) -> bool:
        return isinstance(self.answer, Admitted) and self.settlement is None and not self.dead

    @property
    def liability(self) -> int:
        """What it may have cost within the promise."""
        return self.worst if self.settlement is None else min(self.worst, self.settlement.usd_micros)


class Truth:
    """All calls of a history."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.calls: dict[str, Call] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self._generation = 0
        self._since_us = 0
        self._holes: dict[tuple[str, str], int] = defaultdict(int)
        self._written_down: set[str] = set()

    # -- what happens

    def request(self) -> AdmissionRequest:
        """Make up a call."""
        pick = self._history.random
        idempotency = (pick.choice("xy"), pick.choice("12")) if pick.random() < 0.2 else None
        output = pick.choice((10, 100, 400, 900))
        price = pick.choice((0, 333_333, 1_000_000))
        return AdmissionRequest(
            reservation_id=f"r{len(self.calls)}",
            scopes=pick.choice(SCOPES),
            estimated_tokens=pick.choice((10, 200, 1_500)),
            input_usd_micros=pick.choice((0, 1, 150)),
            output_usd_micros_per_million=price,
            output_tokens=output,
            min_output_tokens=1,
            estimate_usd_micros=output * price // 3_000_000,
            user=pick.choice((None, "ann", "bob")),
            lease_ms=pick.choice((2_000, 15_000)),
            idempotency=idempotency,
            run_budget_usd_micros=pick.choice((None, None, None, 300)),
        )

    def asked(self, request: AdmissionRequest, process: Process) -> Call:
        """A caller begins to wait for its answer."""
        call = Call(request, process, self._generation, self._history.now_us, self._must_replay(request))
        self.calls[request.reservation_id] = call
        self.counts["calls"] += 1
        return call

    def _must_replay(self, request: AdmissionRequest) -> bool:
        """Whether exactly one call used this key before, and its reply is confirmed."""
        same = [
            call
            for call in self.calls.values()
            if request.idempotency is not None
            and call.request.idempotency is not None
            and call.request.idempotency[0] == request.idempotency[0]
            and call.tenant == request.scopes.tenant
            and call.request.scopes.key_id == request.scopes.key_id
        ]
        if len(same) != 1 or same[0].request.idempotency != request.idempotency:
            return False
        [call] = same
        confirmed = call.request.reservation_id not in {open_.id for open_ in call.process.admission.calls()}
        replies = call.settlement is not None and call.settlement.idempotency_reference is not None
        return replies and confirmed and not call.dead and call.generation == self._generation

    def answered(self, reservation_id: str, answer: Decision) -> None:
        """A caller is told."""
        call = self.calls[reservation_id]
        call.answer = answer
        self.counts[type(answer).__name__.lower()] += 1
        if call.must_replay and call.generation == self._generation and isinstance(answer, Admitted):
            raise InvariantBrokenError(f"{reservation_id}: paid twice for one idempotency key")
        if isinstance(answer, Replay):
            references = {c.settlement.idempotency_reference for c in self.calls.values() if c.settlement}
            _demand(answer.reference in references, f"{reservation_id}: replay of {answer.reference}")
        if isinstance(answer, Refused) and answer.kind == "unavailable":
            self.counts["unavailable"] += 1
        if isinstance(answer, Admitted) and not answer.degraded:
            [record] = [c.record for c in call.process.admission.calls() if c.id == reservation_id]
            assert record is not None
            decoded = RECORD.decode(record)
            call.worst = decoded.worst_usd_micros
            call.counters = [
                (call.tenant, group.suffix + name[1:])
                for group in decoded.money
                for name in group.fields[::2]
            ]

    def finish(self, call: Call) -> Settlement:
        """Decide what a call cost."""
        pick = self._history.random
        answer = call.answer
        assert isinstance(answer, Admitted)
        kind = pick.random()
        if kind < 0.1:
            call.settlement = Settlement(
                reservation_id=answer.reservation_id, usd_micros=0, outcome="released"
            )
            return call.settlement
        cost = pick.randint(0, call.worst or 50) if kind < 0.93 else call.worst + pick.randint(1, 400)
        call.settlement = Settlement(
            reservation_id=answer.reservation_id,
            usd_micros=cost,
            output_tokens=pick.randint(0, 900),
            outcome="ok",
            idempotency_reference=f"reply-{answer.reservation_id}" if pick.random() < 0.8 else None,
        )
        return call.settlement

    def running_on(self, process: Process) -> list[Call]:
        """Calls of a process that were admitted and go on."""
        return [call for call in self.calls.values() if call.process is process and call.running]

    def finished_on(self, process: Process) -> list[Settlement]:
        """What calls of a process cost that have ended."""
        return [
            c.settlement for c in self.calls.values() if c.process is process and c.settlement is not None
        ]

    def died(self, process: Process) -> None:
        """A process is killed with all that it was doing."""
        self.counts["kills"] += 1
        for call in self.calls.values():
            if call.process is process:
                call.dead = True

    def abandon(self, process: Process) -> None:
        """The end: nobody goes on with the calls that still run."""
        for call in self.running_on(process):
            call.dead = True

    def data_lost(self) -> None:
        """Redis is wiped, or another one with older data takes its place."""
        self.counts["data_losses"] += 1
        self._generation += 1
        self._since_us = self._history.now_us

    def before_rebuild(self) -> None:
        """Remember what the reaper had written down."""
        with self._history.engine.connect() as connection:
            self._written_down = set(connection.scalars(select(OPEN.c.reservation_id)))

    def rebuilt(self) -> None:
        """Every promise is known again, but for the hole."""
        self.counts["rebuilds"] += 1
        with self._history.engine.connect() as connection:
            in_ledger = set(connection.scalars(select(LEDGER.c.reservation_id)))
        for name, call in self.calls.items():
            if not isinstance(call.answer, Admitted) or not call.counters or call.lost or name in in_ledger:
                continue
            if self._raw(call) is None:
                _demand(call.dead, f"{name}: a living process' call was lost")
                _demand(name not in self._written_down, f"{name}: was written down, and lost")
                call.lost = True
                self.counts["lost_in_the_hole"] += 1
                for counter in call.counters:
                    self._holes[counter] += call.liability

    def _raw(self, call: Call) -> bytes | None:
        key = f"{prefix(call.tenant)}r:{call.request.reservation_id}"
        raw: Any = self._history.server.get(key)
        return raw if isinstance(raw, bytes) else None

    # -- what must hold

    def check(self) -> None:
        """The invariants that hold at every moment."""
        self.counts["events"] += 1
        spent: dict[tuple[str, str], int] = defaultdict(int)
        running: dict[tuple[str, str, int], list[Call]] = defaultdict(list)
        requests: dict[tuple[str, str, int], int] = defaultdict(int)
        for call in self.calls.values():
            if not isinstance(call.answer, Admitted) or call.answer.degraded:
                continue
            for counter in call.counters:
                spent[counter] += call.liability
            if call.generation == self._generation:
                for part in call.request.scopes.parts:
                    name = (call.tenant, f"user:{call.request.user}" if part.scope == "user" else part.scope)
                    if part.scope == "user" and call.request.user is None:
                        continue
                    if part.limits.concurrent_calls is not None and call.running:
                        running[(*name, part.limits.concurrent_calls)].append(call)
                    if part.limits.requests_per_minute is not None:
                        requests[(*name, part.limits.requests_per_minute)] += 1
        for counter, amount in spent.items():
            limit = LIMITS.get((counter[0], counter[1].partition("|")[2]))
            slack = self._holes[counter]
            if limit is not None and amount > limit + slack:
                raise InvariantBrokenError(
                    f"{counter}: {amount} of {limit} (+ hole {slack}) spent or promised"
                )
        for (tenant, scope, limit), calls in running.items():
            if len(calls) > limit:
                leased = [c for c in calls if (raw := self._raw(c)) is not None and state_of(raw) == "o"]
                _demand(len(leased) <= limit, f"{tenant} {scope}: {len(leased)} calls run, limit {limit}")
        elapsed_us = self._history.now_us - (self._since_us or self._history.began_us)
        for (tenant, scope, limit), count in requests.items():
            bound = limit + limit * elapsed_us / 60_000_000 + 1
            _demand(count <= bound, f"{tenant} {scope}: {count} requests, bound {bound}")

    def check_books(self) -> None:
        """The invariants of the end: all settled, all processes gone."""
        history = self._history
        report = verify(history.engine, history.server, scripts=SIM_SCRIPTS)
        _demand(report.balanced, f"books do not balance: {report.differences}")
        _demand(report.open_reservations == report.in_stream == 0, f"left over: {report}")
        self._check_leaks()
        entries: dict[str, dict[str, int]] = defaultdict(dict)
        with history.engine.connect() as connection:
            for row in connection.execute(select(LEDGER)):
                entries[row.reservation_id][row.cause] = row.usd_micros
                if row.cause == "reaped" and row.usd_micros > row.hold_usd_micros:
                    raise InvariantBrokenError(f"{row.reservation_id}: reaped beyond its hold")
        self.counts["entries"] += sum(map(len, entries.values()))
        for name, call in self.calls.items():
            self._check_entries(name, call, entries[name])

    def _check_leaks(self) -> None:
        server: Any = self._history.server
        for key in server.keys("airi:{*}:*"):
            name = key.decode().partition("}:")[2]
            if name == "c" or name[:2] in ("m:", "u:"):
                for part, value in server.hgetall(key).items():
                    money = name[:2] == "m:"
                    held = (
                        float(value if part[:2] == b"h|" else 0) if money else Counters.decode(value).running
                    )
                    _demand(held == 0, f"{key!r} {part!r} leaks {held}")

    def _check_entries(self, name: str, call: Call, entries: dict[str, int]) -> None:
        causes, total = set(entries), sum(entries.values())
        _demand(causes in (set(), {"settled"}, {"reaped"}, {"reaped", "late"}), f"{name}: entries {entries}")
        if isinstance(call.answer, Admitted):
            if call.settlement is not None and causes and causes != {"reaped"}:
                _demand(
                    total == call.settlement.usd_micros, f"{name}: cost {call.settlement}, charged {entries}"
                )
            elif call.settlement is not None and not call.dead:
                raise InvariantBrokenError(f"{name}: settled by a living process, entries {entries}")
            elif not causes:
                excused = (
                    call.lost
                    or call.answer.degraded
                    or (call.generation < self._generation and not call.counters)
                )
                _demand(call.dead and excused, f"{name}: admitted, and not in the ledger")
        elif call.answer is not None:
            # Refused: charged nothing, unless its process died before it could take an admission back, or (only rates,
            # which go on without an epoch) the command came back from the dead after Redis had lost its data.
            late = call.generation < self._generation and not call.request.scopes.has_money
            _demand(total == 0 or call.dead or late, f"{name}: {call.answer} and charged {entries}")


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise InvariantBrokenError(what)
