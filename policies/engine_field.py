"""One text of a stream as it grows."""

from __future__ import annotations

from policies.detectors import Scanner
from policies.redaction import JsonStream, Judge, TextStream
from policies.redaction.text import apply


class Field:
    """One field's text as it grows: what comes in, what may go out."""

    __slots__ = ("_held", "_json", "_surrogate", "_text")

    def __init__(self, scanner: Scanner, judge: Judge, json: bool) -> None:
        self._json = JsonStream(scanner, judge) if json else None
        self._text = TextStream(scanner, judge)
        self._held = ""
        self._surrogate = ""

    def feed(self, piece: str, final: bool = False) -> str:
        if not piece.isascii() or self._surrogate:
            piece = self._pair(piece, final)
        if self._json is not None:
            return self._json.feed(piece, final)
        released, self._held = apply(self._text.feed(piece, final), self._held + piece)
        return released

    def _pair(self, piece: str, final: bool) -> str:
        """Join the halves of a character that was cut; half a character alone becomes U+FFFD."""
        piece = self._surrogate + piece
        self._surrogate = ""
        if not final and "\ud800" <= piece[-1:] <= "\udbff":
            piece, self._surrogate = piece[:-1], piece[-1]
        try:
            piece.encode()
        except UnicodeEncodeError:
            return piece.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return piece
