"""In which order the targets of a route are tried, and when one is tried again. Pure but for the random numbers handed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from hashlib import blake2b

from airi.config.kinds import Retries
from routing.outcome import Failure
from routing.pool import Place
from routing.registry import Route, RouteTarget

_FRACTION = 1 / (1 << 64)
_LAST = math.inf


def ordered(route: Route, session: str, random: Callable[[], float]) -> tuple[RouteTarget, ...]:
    """Return the targets in the order of a weighted draw: a session always draws the same (rendezvous hashing).

    Each target draws ``-ln(u) / weight``; the least comes first. Targets of weight 0 come last, as configured.
    """
    targets = route.targets
    if len(targets) == 1:
        return targets

    def draw(target: RouteTarget) -> float:
        if not target.weight:
            return _LAST
        u = _drawn(session, target) if session else random()
        return -math.log(max(u, 1e-300)) / target.weight

    return tuple(sorted(targets, key=draw))


def _drawn(session: str, target: RouteTarget) -> float:
    """Return a number in (0, 1] that every gateway process draws alike (``hash`` would differ between them)."""
    digest = blake2b("\0".join((session, target.place, target.model)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) + 1) * _FRACTION


def first_usable(
    targets: tuple[RouteTarget, ...], places: Mapping[str, Place], now: float, skipped: list[tuple[str, str]]
) -> RouteTarget:
    """Return the first target whose place may be used; when none may, the first one (its place says why not)."""
    if len(targets) == 1:
        return targets[0]
    for target in targets:
        place = places.get(target.place)
        reason = "removed" if place is None else place.available(now)
        if not reason:
            return target
        skipped.append((target.place, reason))
    return targets[0]


class Plan:
    """The attempts at one route: other places at once, the same place again after a back-off with full jitter."""

    __slots__ = ("_closed", "_failures", "_places", "_random", "_retries", "_targets", "tried")

    def __init__(
        self,
        targets: tuple[RouteTarget, ...],
        retries: Retries,
        places: Mapping[str, Place],
        random: Callable[[], float],
    ) -> None:
        self._targets = targets
        self._retries = retries
        self._places = places
        self._random = random
        self._failures = 0
        self._closed: set[RouteTarget] = set()
        self.tried: dict[str, int] = {}
        """By place: mask of the replicas that failed this call."""

    def after(
        self, target: RouteTarget, bit: int, failure: Failure, now: float
    ) -> tuple[RouteTarget, float] | None:
        """Return the next target and the seconds to wait before it, or ``None`` when the route is exhausted."""
        self.tried[target.place] = self.tried.get(target.place, 0) | bit
        if not failure.again:
            self._closed.add(target)
        if bit and failure.counts:
            self._failures += 1
        if self._failures >= self._retries.max_attempts or not failure.elsewhere:
            return None
        fresh = self._fresh(target, now)
        if fresh is not None:
            return fresh, 0.0
        again = [one for one in self._targets if one not in self._closed]
        if not again:
            return None
        delay = self._delay(failure) if bit else 0.0
        if delay is None:
            return None
        return again[self._failures % len(again)], delay

    def _fresh(self, target: RouteTarget, now: float) -> RouteTarget | None:
        """Return a target with a replica that has not failed this call: the same pool's others first."""
        for one in (target, *(other for other in self._targets if other is not target)):
            place = self._places.get(one.place)
            if place is None or one in self._closed:
                continue
            tried = self.tried.get(one.place, 0)
            if any(not replica.bit & tried and not replica.refusing(now) for replica in place.replicas):
                return one
        return None

    def _delay(self, failure: Failure) -> float | None:
        """Full jitter; what the upstream asks for is respected, and ``None`` when that is longer than we may wait."""
        retries = self._retries
        ceiling = min(retries.max, retries.initial * retries.factor ** max(self._failures - 1, 0)) / 1_000
        if failure.retry_after_s > retries.max / 1_000:
            return None
        return max(self._random() * ceiling, failure.retry_after_s)
