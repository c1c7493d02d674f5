"""Redaction of JSON that arrives in pieces: a tool call's arguments.

Every string, value or key, is decoded as it comes (``\\u0040`` is an ``@``), redacted as a text of its own with its key in
front as context, and put back with the escapes it had, so that what is not redacted stays as it was, byte for byte.
A number that is a payment card's becomes the string ``"[CARD]"``. What is not JSON at all is redacted as plain text.
"""

from __future__ import annotations

from policies.detectors import Scanner, numbers
from policies.detectors.spans import LABELS, LOOK_BACK
from policies.redaction.text import SWALLOWED, Judge, TextStream, apply

_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_DELIMITERS = frozenset("{}[],: \t\r\n")
_MAX_BARE = 640
_UNICODE_ESCAPE = 6
# States of the reader.
_START, _OUTSIDE, _STRING, _PLAIN = range(4)


class JsonStream:
    """The arguments of one tool call. ``feed`` returns what may be released; the pieces joined are the whole redacted."""

    __slots__ = ("_bare", "_before", "_escape", "_held", "_judge", "_key", "_scanner", "_state", "_stream")

    def __init__(self, scanner: Scanner, judge: Judge) -> None:
        self._scanner = scanner
        self._judge = judge
        self._state = _START
        self._stream = TextStream(scanner, judge)
        self._held: list[str] = []
        """Of the string being read: the source of each decoded character not yet released."""
        self._escape = ""
        """An escape sequence of which the end has not come."""
        self._bare = ""
        """A number or a word outside strings that has not ended."""
        self._key = ""
        """The last string that was read: a key, if a colon follows."""
        self._before = ""
        """What the next string has in front of it."""

    def feed(self, piece: str, final: bool = False) -> str:
        """Take the next piece and return what of the text may be released."""
        out: list[str] = []
        position = 0
        while position < len(piece):
            if self._state == _STRING:
                position = self._in_string(piece, position, out)
            elif self._state == _OUTSIDE:
                position = self._outside(piece, position, out)
            elif self._state == _PLAIN:
                self._plain(piece[position:], False, out)
                position = len(piece)
            else:
                position = self._begin(piece, position, out)
        if final:
            self._end(out)
        return "".join(out)

    def _begin(self, piece: str, position: int, out: list[str]) -> int:
        char = piece[position]
        if char in " \t\r\n":
            out.append(char)
            return position + 1
        self._state = _OUTSIDE if char in '{["' else _PLAIN
        return position

    def _plain(self, piece: str, final: bool, out: list[str]) -> None:
        text, rest = apply(self._stream.feed(piece, final), "".join(self._held) + piece)
        out.append(text)
        self._held = [rest]

    def _outside(self, piece: str, position: int, out: list[str]) -> int:
        char = piece[position]
        if char != '"' and char not in _DELIMITERS:
            self._bare += char
            if len(self._bare) >= _MAX_BARE:
                self._end_bare(out)
            return position + 1
        self._end_bare(out)
        out.append(char)
        if char == '"':
            self._state = _STRING
            self._stream = TextStream(self._scanner, self._judge, self._before)
            self._key = ""
        elif char == ":":
            self._before = f"{self._key[-LOOK_BACK:]}: "
        elif char in ",{}":
            self._before = ""
        return position + 1

    def _end_bare(self, out: list[str]) -> None:
        bare, self._bare = self._bare, ""
        if not bare:
            return
        card = numbers.find_bare(bare)
        if card is not None and self._scanner.wants(card) and self._judge(card):
            out.append(f'"{LABELS[card.name]}"')
        elif bare in ("true", "false", "null") or _is_number(bare):
            out.append(bare)
        else:  # not JSON; still nothing may slip through
            stream = TextStream(self._scanner, self._judge, self._before)
            out.append(apply(stream.feed(bare, final=True), bare)[0])

    def _in_string(self, piece: str, position: int, out: list[str]) -> int:
        """Read on in a string up to its end or the end of the piece; release what is decided."""
        decoded: list[str] = []
        closed = False
        while position < len(piece) and not closed:
            if self._escape or piece[position] == "\\":
                position = self._in_escape(piece, position, decoded)
                continue
            stop = _plain_end(piece, position)
            decoded.append(piece[position:stop])
            self._held.extend(piece[position:stop])
            closed = stop < len(piece) and piece[stop] == '"'
            position = stop
        text = "".join(decoded)
        self._key = (self._key + text)[-LOOK_BACK:]
        self._release(text, closed, out)
        if closed:
            out.append('"')
            self._state = _OUTSIDE
            return position + 1
        return position

    def _in_escape(self, piece: str, position: int, decoded: list[str]) -> int:
        self._escape += piece[position]
        escape = self._escape
        if len(escape) == 1:
            return position + 1
        if escape[1] == "u":
            if len(escape) < _UNICODE_ESCAPE and piece[position] != '"':
                return position + 1
            try:
                char = chr(int(escape[2:], 16))
            except ValueError:  # not JSON; kept as it is
                char = "\ufffd"
        else:
            char = _ESCAPES.get(escape[1], "\ufffd")
        decoded.append(char)
        self._held.append(escape)
        self._escape = ""
        return position + 1

    def _release(self, text: str, final: bool, out: list[str]) -> None:
        position = 0
        for count, label in self._stream.feed(text, final):
            if not label:
                out.extend(self._held[position : position + count])
            elif label != SWALLOWED:
                out.append(label)
            position += count
        del self._held[:position]

    def _end(self, out: list[str]) -> None:
        if self._state == _STRING:
            if self._escape:
                self._held.append(self._escape)
                self._escape = ""
                self._release("\ufffd", True, out)
            else:
                self._release("", True, out)
        elif self._state == _PLAIN:
            self._plain("", True, out)
        else:
            self._end_bare(out)
        self._state = _START
        self._stream = TextStream(self._scanner, self._judge)
        self._held = []


def _plain_end(piece: str, position: int) -> int:
    """Return where the next quote or backslash stands, or the end of the piece."""
    quote = piece.find('"', position)
    end = len(piece) if quote == -1 else quote
    backslash = piece.find("\\", position, end)
    return end if backslash == -1 else backslash


def _is_number(bare: str) -> bool:
    return bare[0] in "-0123456789" and all(char in "0123456789+-.eE" for char in bare)
