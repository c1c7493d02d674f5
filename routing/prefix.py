"""Which replica has which beginning of a prompt in its cache, as far as this process has sent it there.

Text is cut into blocks; each block's hash is chained to the one before and seeded with the model's version and the
tenant, so that equal hashes mean equal beginnings within one tenant. Python's own keyed SipHash does it: 64 bits, fast,
and nobody outside can aim for a collision. A wrong hit costs a little time, never correctness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

_FINE, _COARSE, _SAMPLE = 512, 2_048, 384
"""Characters in a block: fine where shared system prompts differ, coarse where long contexts go on. Of a coarse block
only the last ``_SAMPLE`` characters are hashed: prompts that part stay apart, so the error is less than one block."""
_FINE_BLOCKS, _COARSE_BLOCKS = 8, 10
_FINE_CHARS = _FINE * _FINE_BLOCKS
MAX_CHARS = _FINE_CHARS + _COARSE * _COARSE_BLOCKS
"""Text beyond this (24 kB) is not looked at: the cost of hashing is bounded."""
_GENERATIONS = 8
DEFAULT_BLOCKS_PER_REPLICA = 4_096
MAX_BLOCKS_PER_REPLICA = 16_384
"""About 2 MB of memory; an engine's own KV cache is told in tokens, of which a fine block is ``BLOCK_TOKENS``."""
BLOCK_TOKENS = _FINE // 4


def block_hashes(text: str, seed: int) -> list[int]:
    """Return the chained hashes of the whole blocks of ``text``. A last partial block is left out."""
    hashes: list[int] = []
    previous = seed
    size = len(text)
    fine_end = min(size, _FINE_CHARS)
    for end in range(_FINE, fine_end + 1, _FINE):
        previous = hash((previous, text[end - _FINE : end]))
        hashes.append(previous)
    for end in range(_FINE_CHARS + _COARSE, min(size, MAX_CHARS) + 1, _COARSE):
        previous = hash((previous, text[end - _SAMPLE : end]))
        hashes.append(previous)
    return hashes


def chars_of(blocks: int) -> int:
    """Return how many characters the first ``blocks`` blocks cover."""
    fine = min(blocks, _FINE_BLOCKS)
    return fine * _FINE + (blocks - fine) * _COARSE


class PrefixIndex:
    """From a block's hash to a bit mask of the replicas that hold it; bounded per replica, oldest use goes first.

    Recency is kept in generations (sets that are filled in turn), which makes a touch a set update instead of a list
    operation per block. A replica never holds more than its limit of blocks here.
    """

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._generations: dict[int, deque[set[int]]] = {}
        self._limits: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def set_limit(self, bit: int, blocks: int) -> None:
        """Bound the blocks remembered for the replica ``bit`` (its KV blocks, in blocks of ours)."""
        self._limits[bit] = max(blocks, _GENERATIONS)

    def match(self, hashes: Sequence[int], replicas: int) -> dict[int, int]:
        """Return, by replica bit, how many leading blocks are held. ``replicas`` masks those of interest."""
        depths: dict[int, int] = {}
        alive = replicas
        masks = self._masks
        for depth, block in enumerate(hashes):
            still = masks.get(block, 0) & alive
            if still != alive:
                if depth:
                    _note(depths, alive & ~still, depth)
                alive = still
                if not alive:
                    return depths
        if hashes:
            _note(depths, alive, len(hashes))
        return depths

    def insert(self, hashes: Sequence[int], bit: int) -> None:
        """Remember that the replica ``bit`` now holds these blocks, and touch those it already held."""
        if not hashes:
            return
        generations = self._generations.get(bit)
        if generations is None:
            generations = self._generations[bit] = deque([set()])
        per_generation = self._limits.get(bit, DEFAULT_BLOCKS_PER_REPLICA) // _GENERATIONS
        if generations[0] and len(generations[0]) + len(hashes) > per_generation:
            generations.appendleft(set())
            if len(generations) > _GENERATIONS:
                self._forget(generations.pop().difference(*generations), bit)
        kept = hashes if len(hashes) <= per_generation else hashes[:per_generation]
        generations[0].update(kept)
        masks = self._masks
        for block in kept:
            held = masks.get(block, 0)
            if not held & bit:
                masks[block] = held | bit

    def purge(self, bit: int) -> None:
        """Forget all of a replica's blocks: it restarted, slept, or serves something else now."""
        for generation in self._generations.pop(bit, ()):
            self._forget(generation, bit)

    def _forget(self, blocks: set[int], bit: int) -> None:
        masks = self._masks
        for block in blocks:
            left = masks.get(block, 0) & ~bit
            if left:
                masks[block] = left
            else:
                masks.pop(block, None)


def _note(depths: dict[int, int], mask: int, depth: int) -> None:
    """Write ``depth`` for every bit of ``mask``."""
    while mask:
        low = mask & -mask
        depths[low] = depth
        mask ^= low
