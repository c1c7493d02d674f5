"""A cheap, deterministic tokenizer: pieces of words with their leading space, signs, and single spaces.

It loses nothing (the pieces joined are the text) and needs no vocabulary; counts come close to a real tokenizer's
for prose. A prompt is a list of segments (role, content, …) that are split each for itself, so that a conversation
that goes on begins with the very pieces of the one before it, answer included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_PIECES = re.compile(r"\s?\w{1,6}|\s?[^\w\s]|\s")
_CACHED_CHARACTERS = 32_768


def split(text: str) -> list[str]:
    """Return the tokens of ``text``; joined they are ``text``."""
    return _PIECES.findall(text)


def count(text: str) -> int:
    """Return how many tokens ``text`` has."""
    return len(_PIECES.findall(text))


@lru_cache(maxsize=32)
def _split_cached(text: str) -> tuple[str, ...]:
    return tuple(_PIECES.findall(text))


class Prompt:
    """The pieces of a prompt and the chained hashes of its full blocks; ``salt`` keeps models apart."""

    __slots__ = ("_block", "_chained", "_tail", "hashes", "tokens")

    def __init__(self, segments: Iterable[str], salt: str, block: int) -> None:
        pieces: list[str] = []
        for segment in segments:
            # Only what comes again and again (system prompts, tools) is worth keeping; huge texts are not kept.
            pieces += _split_cached(segment) if len(segment) <= _CACHED_CHARACTERS else split(segment)
        self._block = block
        self.tokens = len(pieces)
        self.hashes, self._chained = _chain(pieces, hash(salt), block)
        self._tail = pieces[len(self.hashes) * block :]

    def followed_by(self, answer: list[str]) -> list[int]:
        """Return the hashes of the full blocks of prompt and answer."""
        return self.hashes + _chain(self._tail + answer, self._chained, self._block)[0]


def prompt_of(segments: list[str], salt: str, block: int) -> Prompt:
    """Return the prompt of ``segments``; one that was asked a moment ago is not read again."""
    if sum([len(segment) for segment in segments]) > _CACHED_CHARACTERS:
        return Prompt(segments, salt, block)
    return _prompt_cached(tuple(segments), salt, block)


@lru_cache(maxsize=16)
def _prompt_cached(segments: tuple[str, ...], salt: str, block: int) -> Prompt:
    return Prompt(segments, salt, block)


def _chain(pieces: list[str], chained: int, block: int) -> tuple[list[int], int]:
    hashes: list[int] = []
    for start in range(0, len(pieces) - block + 1, block):
        chained = hash((chained, "".join(pieces[start : start + block])))
        hashes.append(chained)
    return hashes, chained
