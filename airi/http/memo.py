"""Heads that come again: the same bytes need no second parsing.

On a kept connection most heads differ from the one before in nothing but the digits of their content-length. A memo
holds the bytes around those digits. What matches it byte for byte, and holds exactly the body that the digits
announce, is a message that the parser has already judged; anything else goes to the parser as ever.
"""

from __future__ import annotations

_MOST_DIGITS = 12
_MAX_PAUSE = 256


class HeadMemo:
    """A head seen before, split around the digits of its content-length (``after`` is empty where it has none)."""

    __slots__ = ("after", "before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self.before = before
        self.after = after

    def body_start(self, data: bytes) -> int:
        """Return where the body of the whole message ``data`` begins, or 0 when the parser has to look at it."""
        before, after = self.before, self.after
        if not data.startswith(before):
            return 0
        start = len(before)
        if not after:
            return start if len(data) == start else 0
        end = data.find(b"\r", start, start + _MOST_DIGITS)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return 0
        begin = end + len(after)
        return begin if len(data) - begin == int(digits) else 0


def split_head(data: bytes, body_size: int) -> HeadMemo | None:
    """Return the memo of the head of ``data``, which is one whole parsed message with a body of ``body_size``."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4 or len(data) != end + body_size:
        return None
    at = data[:end].lower().find(b"\r\ncontent-length:")
    if at < 0:
        return HeadMemo(data[:end], b"") if not body_size else None
    start = at + 17
    while data[start] in b" \t":
        start += 1
    stop = data.find(b"\r", start)
    return HeadMemo(data[:start], data[stop:end])


class Pacer:
    """Says when a new memo is worth making: rarely, where heads never come again."""

    __slots__ = ("_left", "_pause")

    def __init__(self) -> None:
        self._left = 0
        self._pause = 0

    def missed(self, useful: bool) -> bool:
        """A head was not the memo's, which was ``useful`` before or not. Return whether to make a new one."""
        if useful:
            self._left = self._pause = 0
        if self._left:
            self._left -= 1
            return False
        self._left = self._pause
        self._pause = min(self._pause * 2 + 1, _MAX_PAUSE)
        return True
