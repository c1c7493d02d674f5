"""Rewriting the blocks of reasoning in a stream: Anthropic's ``thinking_blocks``, OpenRouter's ``reasoning_details``.

Their texts come in pieces like any other; the piece that carries a block's signature ends it. A signature vouches for the
text as the model wrote it, so a block that was redacted has none.
"""

from __future__ import annotations

from typing import Any

from airi.errors import AiriError
from policies.content import BLOCK_FIELDS
from policies.detectors import Scanner
from policies.engine_field import Field
from policies.redaction import Judge

Piece = dict[str, Any]
_LEAVES = ("thinking", "text", "summary")
_SHAPE = ("type", "index", "id", "format")
_MAX_BLOCKS = 1_024


class _Block:
    """One text of a block that is being written. ``shape`` is what its pieces have besides the text."""

    __slots__ = ("came", "field", "shape", "went")

    def __init__(self, field: Field, shape: Piece) -> None:
        self.field = field
        self.shape = shape
        self.came = ""
        self.went = ""

    def feed(self, piece: str, *, final: bool) -> str:
        self.came += piece
        released = self.field.feed(piece, final)
        self.went += released
        return released


class BlockWriter:
    """The blocks of all choices of one stream."""

    def __init__(self, scanner: Scanner, judge: Judge) -> None:
        self._scanner = scanner
        self._judge = judge
        self._open: dict[tuple[Any, ...], _Block] = {}

    def feed(self, delta: dict[str, Any], index: Any, *, final: bool) -> dict[str, Any]:
        """Return the fields of a delta that must be changed; ``final`` when nothing comes after it."""
        changes: dict[str, Any] = {}
        for name in BLOCK_FIELDS:
            pieces = delta.get(name)
            if not isinstance(pieces, list) or not pieces:
                continue
            written = [
                self._piece(piece, (index, name, position), final=final) if isinstance(piece, dict) else piece
                for position, piece in enumerate(pieces)
            ]
            if any(new is not old for new, old in zip(written, pieces, strict=True)):
                changes[name] = [piece for piece in written if piece is not None]
        return changes

    def flush(self, index: Any) -> dict[str, Any]:
        """Return, as fields of a delta, what is still held of a choice's blocks, and forget them."""
        delta: dict[str, Any] = {}
        for key in [key for key in self._open if key[0] == index]:
            block = self._open.pop(key)
            rest = block.feed("", final=True)
            if rest:
                delta.setdefault(key[1], []).append({**block.shape, key[3]: rest})
        return delta

    def _piece(self, piece: Piece, place: tuple[Any, ...], *, final: bool) -> Piece | None:
        """Return the piece to send (the same object when nothing changed), or ``None`` when nothing is left of it."""
        ends = bool(piece.get("signature"))
        number = piece.get("index", place[2])
        written = piece
        for leaf in _LEAVES:
            text = piece.get(leaf)
            key = (place[0], place[1], number, leaf)
            if not isinstance(text, str) or not (text or key in self._open):
                continue
            block = self._block(key, piece)
            released = block.feed(text, final=final or ends)
            if released != text:
                written = {**written, leaf: released}
            if ends and block.came != block.went:
                written = {**written, "signature": ""}
            if ends or final:
                del self._open[key]
        if written is piece or ends or any(written.get(leaf) for leaf in _LEAVES):
            return written
        return None

    def _block(self, key: tuple[Any, ...], piece: Piece) -> _Block:
        block = self._open.get(key)
        if block is None:
            if len(self._open) >= _MAX_BLOCKS:
                raise AiriError(
                    "The upstream's stream has too many fields.", status=502, code="upstream_invalid_answer"
                )
            shape = {name: piece[name] for name in _SHAPE if name in piece}
            block = self._open[key] = _Block(Field(self._scanner, self._judge, False), shape)
        return block
