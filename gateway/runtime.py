"""What one gateway process holds: the parts that the stages of a call use."""

from __future__ import annotations

from dataclasses import dataclass, field

from airi.content import ContentStore
from airi.identity import Identities
from airi.keyring import KeyRing
from airi.keys import KeyMap
from airi.redis_pipeline import PipelinedRedis
from airi.stored_responses import ResponseStore
from gateway.exchange import Exchange
from gateway.proxy import ControlProxy
from gateway.snapshot import Snapshot
from gateway.watcher import Watcher
from observability.emitter import Emitter
from policies.admission import Admission
from routing.router import Router


@dataclass(slots=True)
class Runtime:
    """The parts of a gateway process. ``snapshot`` is replaced whole; a call keeps the one it began with."""

    process: str
    snapshot: Snapshot
    keys: KeyMap
    identities: Identities
    keyring: KeyRing
    watcher: Watcher
    admission: Admission
    router: Router
    emitter: Emitter
    content: ContentStore
    responses: ResponseStore
    control: ControlProxy
    redis: PipelinedRedis
    max_in_flight: int = 4_000
    in_flight: dict[str, Exchange] = field(default_factory=dict)
    draining: bool = False

    def missing(self) -> list[str]:
        """Name the dependencies without which calls cannot be served; empty when the process is ready."""
        missing = []
        if not self.redis.connected:
            missing.append("redis: limits and budgets cannot be checked")
        elif not self.admission.money_ready:
            missing.append("ledger: budgets are being rebuilt")
        if not self.snapshot.version:
            missing.append("configuration: no snapshot has been loaded")
        if self.draining:
            missing.append("this process is shutting down")
        return missing
