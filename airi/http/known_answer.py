"""Answers whose heads come again (see :mod:`airi.http.memo`)."""

from __future__ import annotations

from airi.http.memo import HeadMemo, split_head
from airi.http.response import Response

_BODILESS = frozenset({204, 304})


class KnownAnswer:
    """An answer whose head may come again, on any connection of its pool."""

    __slots__ = ("headers", "memo", "position", "status", "useful")

    def __init__(self, memo: HeadMemo, response: Response, position: int) -> None:
        self.memo = memo
        self.status = response.status
        self.headers = list(response.headers)
        self.position = position
        self.useful = False

    @classmethod
    def of(cls, response: Response, data: bytes) -> KnownAnswer | None:
        """Return what is to be remembered of ``data``; only plain answers with a body and its length are."""
        positions = [i for i, pair in enumerate(response.headers) if pair[0] == b"content-length"]
        if len(positions) != 1 or response.status in _BODILESS:
            return None
        memo = split_head(data, response.buffered)
        return cls(memo, response, positions[0]) if memo is not None and memo.after else None
