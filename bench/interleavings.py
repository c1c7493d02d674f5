"""Admission, settlement, reaper and epoch under seeded random interleavings with crashes, against a real Redis.

    python -m bench.interleavings --seeds 10000 [--first 0] [--processes 2]

prints one JSON line; exit status 1 when an invariant broke, with the seed that replays it
(``--first SEED --seeds 1 --trace``). The invariants are in :class:`bench.admission_truth.Truth`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import Engine

from airi.database import migrate, open_engine, write
from airi.embedded.redis import find_redis, wait_for_redis
from bench.admission_truth import InvariantBrokenError, Truth
from bench.admission_world import CLOCK_KEY, SIM_SCRIPTS, Process, RawRedis, Server, new_loop, settle_down
from policies.admission import AdmissionRequest, Admitted, Settlement
from policies.epoch import Rebuild
from policies.errors import LedgerError
from policies.ledger import LedgerConsumer
from policies.migrations import MIGRATIONS
from policies.reaper import Reaper
from policies.schema import METADATA

STEPS = 90
MIDNIGHT_S = 4_102_444_800
"""2100-01-01T00:00Z: every window but the week's changes near it, and nothing expires by Redis' own clock."""
EVENTS = (
    ("call", 16),
    ("deliver", 34),
    ("answer", 30),
    ("finish", 14),
    ("beat", 7),
    ("tick", 6),
    ("reap", 2),
    ("consume", 3),
    ("disconnect", 2),
    ("time_out", 2),
    ("again", 2),
    ("break", 2),
    ("reconnect", 3),
    ("zombie", 4),
    ("kill", 1),
    ("lose_data", 0.9),
    ("rebuild", 5),
)


class Crash(Exception):  # noqa: N818  # it is an event, not an error
    """The consumer dies between SQL's commit and the stream."""


class CrashingServer(Server):
    """A client whose next pipeline never comes to be."""

    crash_next = False

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        """As redis-py's, or the end."""
        if self.crash_next:
            self.crash_next = False
            raise Crash
        return super().pipeline(transaction, shard_hint)


class History:
    """One seed: its events and what is true in it."""

    def __init__(self, seed: int, server: CrashingServer, raw: RawRedis, engine: Engine) -> None:
        self.random = Random(seed)  # replayable on purpose
        self.server, self.raw, self.engine = server, raw, engine
        self.now_us = self.began_us = 0
        self.epoch_number = 1
        self.processes: list[Process] = []
        self.made = 0
        self.saved: list[tuple[bytes, bytes]] = []
        self.truth = Truth(self)
        self.trace: list[str] = []
        self.rebuilding: Rebuild | None = None

    def begin(self) -> None:
        """An empty Redis with an epoch, an empty ledger, three processes."""
        self.now_us = (MIDNIGHT_S - self.random.randrange(120)) * 1_000_000
        self.began_us = self.now_us
        self.server.run_id = "server-1"
        self.server.crash_next = False
        self.server.flushdb()
        with write(self.engine) as connection:
            for table in METADATA.sorted_tables:
                connection.execute(table.delete())
        self.server.mset({CLOCK_KEY: self.now_us, "airi:epoch": "server-1:0"})
        self.consumer = LedgerConsumer(self.engine, self.server)
        self.reaper = Reaper(self.engine, self.server, scripts=SIM_SCRIPTS)
        for _ in range(3):
            self._start_process()

    def _start_process(self) -> None:
        self.made += 1
        self.processes.append(Process(f"p{self.made}", self.raw, self.server, lambda: self.now_us / 1e6))

    def tick(self, us: int) -> None:
        """Time passes."""
        self.now_us += us
        self.server.set(CLOCK_KEY, self.now_us)

    async def run(self) -> None:
        """Live through the history, then put all in order and check the books."""
        self.begin()
        for each in self.processes:
            await self.on_beat(each)
        await self._quiet()
        names = [name for name, _ in EVENTS]
        weights = [weight for _, weight in EVENTS]
        for name in self.random.choices(names, weights, k=STEPS):
            self.trace.append(f"{name} @{self.now_us}")
            await getattr(self, f"on_{name}")(self.random.choice(self.processes))
            await settle_down()
            self.truth.check()
        await self.put_in_order()
        self.truth.check_books()

    # -- events

    async def on_call(self, process: Process) -> None:
        """A caller asks for admission."""
        request = self.truth.request()
        call = self.truth.asked(request, process)
        task = asyncio.create_task(self._reserve(process, request))
        call.task = task
        process.tasks.add(task)
        task.add_done_callback(process.tasks.discard)

    async def _reserve(self, process: Process, request: AdmissionRequest) -> None:
        answer = await process.admission.reserve(request)
        self.trace.append(f"  {request.reservation_id} {type(answer).__name__} {getattr(answer, 'kind', '')}")
        self.truth.answered(request.reservation_id, answer)
        assert not isinstance(answer, Admitted) or answer.output_tokens >= request.min_output_tokens

    async def on_deliver(self, process: Process) -> None:
        """Redis executes a command."""
        if process.wire.outgoing:
            process.wire.deliver()

    async def on_answer(self, process: Process) -> None:
        """An answer arrives."""
        if process.wire.incoming:
            process.wire.come_back()

    async def on_finish(self, process: Process) -> None:
        """A call ends: at its cost, beyond it (a lying upstream), or it is never sent."""
        running = self.truth.running_on(process)
        if running:
            settlement = self.truth.finish(self.random.choice(running))
            self._settle(process, settlement)

    def _settle(self, process: Process, settlement: Settlement) -> None:
        if settlement.outcome == "released":
            process.admission.release(settlement.reservation_id)
        else:
            process.admission.settle(settlement)

    async def on_again(self, process: Process) -> None:
        """A settlement is called twice."""
        finished = self.truth.finished_on(process)
        if finished:
            self._settle(process, self.random.choice(finished))

    async def on_beat(self, process: Process) -> None:
        """The process' beat begins, unless the last one still waits."""
        if process.beat is None or process.beat.done():
            if process.beat is not None and not process.beat.cancelled():
                process.beat.exception()
            process.beat = asyncio.create_task(process.admission.beat())

    async def on_tick(self, process: Process) -> None:
        """Time passes: a little, a lease, the border of a window."""
        self.tick(self.random.choice((1_000, 50_000, 1_000_000, 6_000_000, 25_000_000)))

    async def on_reap(self, process: Process) -> None:
        """The reaper passes."""
        self.reaper.run_once()

    async def on_consume(self, process: Process) -> None:
        """The consumer moves a batch, or dies in the middle."""
        self.server.crash_next = self.random.random() < 0.3
        try:
            self.consumer.run_once()
        except Crash:
            self.trace.append("  consumer died after SQL's commit")
        self.server.crash_next = False

    async def on_disconnect(self, process: Process) -> None:
        """A caller leaves while its admission is on its way."""
        if process.tasks:
            waiting = sorted(process.tasks, key=lambda task: task.get_name())
            self.random.choice(waiting).cancel()

    async def on_time_out(self, process: Process) -> None:
        """Redis is too slow for somebody."""
        process.wire.time_out()

    async def on_break(self, process: Process) -> None:
        """A connection breaks."""
        process.wire.lose(deliver_later=self.random.random() < 0.5)

    async def on_reconnect(self, process: Process) -> None:
        """Connections come back."""
        for each in self.processes:
            if not each.wire.connected:
                each.wire.reconnect()

    async def on_zombie(self, process: Process) -> None:
        """A command of a broken connection is executed after all."""
        if process.wire.zombies:
            process.wire.execute_zombie()

    async def on_kill(self, process: Process) -> None:
        """SIGKILL of a process; another one starts."""
        self.truth.died(process)
        await process.die(deliver_later=self.random.random() < 0.5)
        while process.wire.zombies:
            process.wire.execute_zombie()
        self.processes.remove(process)
        self._start_process()

    async def on_lose_data(self, process: Process) -> None:
        """FLUSHALL, or a failover to a replica that lags behind (it has what Redis held at the last such event or start)."""
        kind = self.random.choice(("flush", "failover", "save", "save"))
        self.trace.append(f"  {kind}")
        if kind == "save":
            keys: Any = sorted(self.server.keys("airi:*"))
            self.saved = [(key, self.server.dump(key) or b"") for key in keys]
            return
        self.truth.data_lost()
        self.server.flushdb()
        if kind == "failover":
            for key, data in self.saved:
                self.server.restore(key, 0, data)
            self.epoch_number += 1
            self.server.run_id = f"server-{self.epoch_number}"
            for each in self.processes:
                each.wire.lose(deliver_later=False)
        self.server.set(CLOCK_KEY, self.now_us)

    async def on_rebuild(self, process: Process) -> None:
        """The control plane begins to rebuild money if it is to, or goes on when every living process has reported."""
        if self.rebuilding is None:
            work = Rebuild(self.engine, self.server, scripts=SIM_SCRIPTS)
            if work.begin():
                self.rebuilding = work
            return
        work = self.rebuilding
        try:
            if work.missing(each.name for each in self.processes):
                return
            self.truth.before_rebuild()
            work.complete([])
            self.truth.rebuilt()
        except LedgerError as error:
            self.trace.append(f"  {error}")
        work.end()
        self.rebuilding = None

    async def _quiet(self) -> None:
        """Let what is on its way arrive, and what follows from it."""
        await settle_down()
        for each in self.processes:
            while each.wire.outgoing or each.wire.incoming:
                while each.wire.outgoing:
                    each.wire.deliver()
                while each.wire.incoming:
                    each.wire.come_back()
                await settle_down()

    # -- the end

    async def put_in_order(self) -> None:
        """Everything that can still happen happens; then the reaper takes what nobody settles."""
        await self.on_reconnect(self.processes[0])
        for round_ in range(8):
            await self._quiet()
            await self.on_rebuild(self.processes[0])
            for each in self.processes:
                for call in self.truth.running_on(each):
                    if round_ < 2 and self.random.random() < 0.5:
                        self._settle(each, self.truth.finish(call))
                await self.on_beat(each)
            await self._quiet()
            for each in self.processes:
                while each.wire.zombies and (round_ == 2 or self.random.random() < 0.3):
                    each.wire.execute_zombie()
            if round_ > 1 and self.rebuilding is None and not any(map(_unconfirmed, self.processes)):
                break
        for each in self.processes:
            self.truth.abandon(each)
            if unconfirmed := _unconfirmed(each):
                raise InvariantBrokenError(f"settlements are not confirmed: {unconfirmed}")
        self.tick(3_600_000_000)
        self.reaper.run_once()
        self.consumer.run_until_empty()


def _unconfirmed(process: Process) -> list[str]:
    return [call.id for call in process.admission.calls() if call.settlement is not None]


def run_seeds(first: int, seeds: int, *, trace: bool = False) -> dict[str, Any]:
    """Run seeds on a Redis of their own; return counts, and the first broken seed if there is one."""
    with tempfile.TemporaryDirectory(
        prefix="airi-sim-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as folder:
        path = Path(folder) / "r.sock"
        command = [
            str(find_redis().path),
            "--port",
            "0",
            "--unixsocket",
            str(path),
            "--save",
            "",
            "--dir",
            folder,
        ]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for_redis(path)
            return _run_on(path, Path(folder), range(first, first + seeds), trace=trace)
        finally:
            child.terminate()
            child.wait(10)


def _run_on(path: Path, folder: Path, seeds: range, *, trace: bool) -> dict[str, Any]:
    engine = open_engine(f"sqlite:///{folder / 'sim.db'}", full_sync=False)
    migrate(engine, "policies", MIGRATIONS)
    server = CrashingServer(unix_socket_path=str(path))
    raw = RawRedis(path)
    for script in vars(SIM_SCRIPTS).values():
        raw.execute(script.load_command)
    totals: dict[str, int] = {}
    runner = asyncio.Runner(loop_factory=new_loop)
    try:
        for seed in seeds:
            history = History(seed, server, raw, engine)
            try:
                runner.run(history.run())
            except Exception as error:  # whatever broke, the seed is what replays it
                if trace:
                    print("\n".join(history.trace), file=sys.stderr)
                    if not isinstance(error, InvariantBrokenError):
                        raise
                return {
                    "seeds": seed - seeds.start,
                    "broken_seed": seed,
                    "why": f"{type(error).__name__}: {error}",
                }
            for name, value in history.truth.counts.items():
                totals[name] = totals.get(name, 0) + value
    finally:
        runner.close()
        raw.close()
        server.close()
        engine.dispose()
    return {"seeds": len(seeds), **totals}


def _part(arguments: tuple[int, int]) -> dict[str, Any]:
    return run_seeds(*arguments)


def main() -> int:
    """Run and print; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    if options.processes == 1 or options.trace or options.seeds < options.processes:
        results = [run_seeds(options.first, options.seeds, trace=options.trace)]
    else:
        share, rest = divmod(options.seeds, options.processes)
        parts = [
            (options.first + i * share + min(i, rest), share + (i < rest)) for i in range(options.processes)
        ]
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            results = pool.map(_part, parts)
    answer: dict[str, Any] = {"figure": "interleavings", "seconds": round(time.perf_counter() - started, 1)}
    for result in results:
        for name, value in result.items():
            answer[name] = (
                answer.get(name, 0) + value if isinstance(value, int) and name != "broken_seed" else value
            )
    answer["invariants_hold"] = "broken_seed" not in answer
    print(json.dumps(answer))
    return 0 if answer["invariants_hold"] else 1


if __name__ == "__main__":
    sys.exit(main())
