"""KV memory in blocks, with a cache of the prefixes that were computed before.

A full block has a hash chained over everything before it, so equal hashes mean equal prefixes. Blocks that no
sequence uses stay cached until the room is needed, least recently used first (as vLLM's automatic prefix caching).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Items


class BlockPool:
    """Counts blocks; those with a hash are shared between the sequences that have the same prefix."""

    __slots__ = ("_cached", "_plain", "_shared", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._plain = 0
        self._shared: dict[int, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks held by sequences (what is only cached is free)."""
        return self._plain + len(self._shared)

    @property
    def free(self) -> int:
        """Blocks that can be had, by eviction too."""
        return self.capacity - self._plain - len(self._shared)

    @property
    def cached(self) -> int:
        """Blocks kept for a prefix to come back, used by nobody."""
        return len(self._cached)

    def matching(self, hashes: Items[int], limit: int) -> int:
        """Return how many leading blocks of ``hashes`` (at most ``limit``) are in memory."""
        count = 0
        for value in hashes[:limit]:
            if value not in self._shared and value not in self._cached:
                break
            count += 1
        return count

    def hold(self, value: int) -> None:
        """Use a block that is in memory."""
        users = self._shared.get(value)
        if users is None:
            del self._cached[value]
            users = 0
        self._shared[value] = users + 1

    def take(self, count: int) -> None:
        """Use ``count`` blocks that have no hash yet; the caller has looked at :attr:`free`."""
        self._plain += count
        while self._plain + len(self._shared) + len(self._cached) > self.capacity:
            self._cached.popitem(last=False)

    def name(self, value: int) -> None:
        """A plain block is full: share it under its hash, or fold it into one that is there already."""
        self._plain -= 1
        if value in self._shared or value in self._cached:
            self.hold(value)
        else:
            self._shared[value] = 1

    def drop(self, hashes: Items[int], plain: int) -> None:
        """Stop using blocks: named ones stay cached, the end of a prefix being forgotten before its beginning."""
        self._plain -= plain
        for value in reversed(hashes):
            users = self._shared[value] - 1
            if users:
                self._shared[value] = users
            else:
                del self._shared[value]
                self._cached[value] = None

    def clear_cache(self) -> None:
        """Forget every prefix that nobody uses."""
        self._cached.clear()
