"""Reading a compiled expression's syntax tree, to know what it refers to and how much work it may make.

The library does not expose the tree; its serialised form is the public protobuf message
``google.protobuf.Any{cel.expr.CheckedExpr}`` (cel-spec, ``proto/cel/expr/checked.proto`` and ``syntax.proto``).
Only the few fields needed are read here, straight from the wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_REFERENCE_MAP, _EXPR = 2, 4
_CONST, _SELECT, _CALL, _LIST, _STRUCT, _COMPREHENSION = 3, 5, 6, 7, 8, 9
_CONST_STRING = 6
_CALL_TARGET, _CALL_NAME, _CALL_ARGUMENT = 1, 2, 3
_STRUCT_ENTRY, _ENTRY_PARTS = 2, (3, 4)
_COMPREHENSION_RANGE, _COMPREHENSION_PARTS = 2, (2, 4, 5, 6, 7)
_COPYING = frozenset({"replace", "join"})


@dataclass(slots=True)
class Shape:
    """What an expression may do: ``nesting`` of comprehensions, and how its result may outgrow its input.

    ``additions``: concatenations; ``literal``: the longest literal that ``replace`` or ``join`` inserts;
    ``powers``: inserts of something that is not a literal, each of which may square the size.
    """

    names: set[str]
    nesting: int = 0
    additions: int = 0
    literal: int = 1
    powers: int = 0

    @property
    def grows(self) -> bool:
        """Whether the result may be larger than the input."""
        return bool(self.additions or self.powers or self.literal > 1)

    def work(self, chars: int, nodes: int) -> int:
        """Return an upper estimate of the characters touched or made for an input of that size."""
        work: int = chars * (1 + self.additions) * self.literal * chars**self.powers
        return work * min(max(nodes, 1), 10_000) if self.nesting else work


def inspect(serialized: bytes) -> Shape:
    """Return the shape of a checked expression as the compiler serialised it."""
    checked = next(body for field, body in _fields(serialized) if field == 2)
    shape = Shape(set())
    for field, body in _fields(checked):
        if field == _REFERENCE_MAP:
            reference = next((value for key, value in _fields(body) if key == 2), b"")
            shape.names.update(value.decode() for key, value in _fields(reference) if key == 1)
        elif field == _EXPR:
            _walk(body, 0, shape)
    return shape


def _walk(expression: bytes, loops: int, shape: Shape) -> None:
    for kind, node in _fields(expression):
        if kind == _COMPREHENSION:
            shape.nesting = max(shape.nesting, loops + 1)
            for field, child in _fields(node):
                if field in _COMPREHENSION_PARTS:
                    _walk(child, loops + (field != _COMPREHENSION_RANGE), shape)
        elif kind == _CALL:
            _call(node, loops, shape)
        elif kind == _STRUCT:
            for field, entry in _fields(node):
                for key, child in _fields(entry) if field == _STRUCT_ENTRY else ():
                    if key in _ENTRY_PARTS:
                        _walk(child, loops, shape)
        elif kind in (_SELECT, _LIST):
            for field, child in _fields(node):
                if field == 1:
                    _walk(child, loops, shape)


def _call(node: bytes, loops: int, shape: Shape) -> None:
    parts = list(_fields(node))
    name = next(body.decode() for field, body in parts if field == _CALL_NAME)
    arguments = [body for field, body in parts if field == _CALL_ARGUMENT]
    shape.additions += name in ("_+_", "format")
    if name in _COPYING:
        inserted = [_literal(argument) for argument in arguments]
        known = [len(text) for text in inserted if text is not None]
        shape.literal = max([shape.literal, *(size + 1 for size in known)])
        shape.powers += len(known) < len(inserted)
    for field, child in parts:
        if field in (_CALL_TARGET, _CALL_ARGUMENT):
            _walk(child, loops, shape)


def _literal(expression: bytes) -> bytes | None:
    constant = next((body for field, body in _fields(expression) if field == _CONST), None)
    if constant is None:
        return None
    # A constant that is no string (replace's count) inserts nothing.
    return next((body for field, body in _fields(constant) if field == _CONST_STRING), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, bytes) of the length-delimited fields of a protobuf message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == 0:
            _, position = _varint(message, position)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        else:
            size, position = _varint(message, position)
            yield tag >> 3, message[position : position + size]
            position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
