"""What is running now: the last pulse of every process that is connected to the writer, in memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from observability.record import LiveCall
from observability.wire import Hello, Pulse

STALE_S = 5.0
"""A process that has not pulsed for so long is shown as stale and its calls no longer as running."""
_MOST_DEPARTED = 1_000


@dataclass(slots=True)
class Peer:
    """One connected process."""

    hello: Hello
    pulse: Pulse
    pulsed_at: float


class LiveTable:
    """Processes by instance. Drops of processes that have left are kept in a total, so that none is forgotten."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self._peers: dict[str, Peer] = {}
        self._departed: dict[str, dict[str, int]] = {}
        self._long_gone: Counter[str] = Counter()

    def greet(self, hello: Hello) -> None:
        """Note a connected process. One that comes back goes on counting where it was."""
        self._departed.pop(hello.instance, None)
        self._peers[hello.instance] = Peer(hello, Pulse([], {}), self._now())

    def pulse(self, instance: str, pulse: Pulse) -> None:
        """Note what a process says about itself."""
        peer = self._peers.get(instance)
        if peer is not None:
            peer.pulse = pulse
            peer.pulsed_at = self._now()

    def leave(self, hello: Hello) -> None:
        """Forget a process whose connection ended, unless it has connected anew meanwhile."""
        peer = self._peers.get(hello.instance)
        if peer is not None and peer.hello is hello:
            del self._peers[hello.instance]
            self._departed[hello.instance] = peer.pulse.drops
            if len(self._departed) > _MOST_DEPARTED:
                self._long_gone.update(self._departed.pop(next(iter(self._departed))))

    def peers(self) -> Iterator[tuple[Peer, bool]]:
        """Yield each process and whether it is stale, in order of name."""
        now = self._now()
        for peer in sorted(self._peers.values(), key=lambda p: (p.hello.process, p.hello.pid)):
            yield peer, now - peer.pulsed_at > STALE_S

    def calls(self, tenant: str | None, limit: int) -> list[tuple[str, LiveCall]]:
        """Return (process, call) of what is in flight, newest first; ``tenant`` ``None`` means every tenant."""
        running = [
            (peer.hello.process, call)
            for peer, stale in self.peers()
            if not stale
            for call in peer.pulse.live
            if tenant is None or call.tenant == tenant
        ]
        running.sort(key=lambda item: item[1].started_unix_ns, reverse=True)
        return running[:limit]

    def drops(self) -> dict[str, int]:
        """Return records lost by processes, by cause, since the writer started."""
        total = Counter(self._long_gone)
        for drops in self._departed.values():
            total.update(drops)
        for peer in self._peers.values():
            total.update(peer.pulse.drops)
        return dict(total)
