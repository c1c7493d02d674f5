"""Frames between a process and the writer: four bytes of length (big-endian), then one msgpack message.

A process opens with :class:`Hello`, then sends :class:`Batch` (resent until acknowledged) and :class:`Pulse`
(fire and forget). The writer answers each batch with :class:`Ack` after its transaction has committed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from observability.errors import WireError
from observability.record import CallContent, LiveCall

PROTOCOL = 1
MAX_FRAME_BYTES = 32 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """Who speaks. ``instance`` is new at every start of a process and names its sequence of batches."""

    protocol: int
    instance: str
    process: str
    pid: int


class Batch(msgspec.Struct, tag="batch", array_like=True):
    """Finished records, each already encoded. ``contents`` pairs an index into ``calls`` with its content."""

    seq: int
    calls: list[msgspec.Raw]
    spans: list[msgspec.Raw]
    contents: list[tuple[int, CallContent]]


class Pulse(msgspec.Struct, tag="pulse", array_like=True):
    """The state of a process now: calls in flight, and gauges by Prometheus name without the ``airi_`` prefix."""

    live: list[LiveCall]
    gauges: dict[str, float]
    live_cut: int = 0
    """Calls in flight that are not in ``live`` because the list is bounded."""
    drops: dict[str, int] = {}
    """Records lost in this process since it started, by cause."""


class Ack(msgspec.Struct, tag="ack", array_like=True):
    """Every batch up to and including ``seq`` is committed."""

    seq: int


Message = Hello | Batch | Pulse
encoder = msgspec.msgpack.Encoder()
message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
ack_decoder = msgspec.msgpack.Decoder(Ack)


def frame(message: Message | Ack) -> bytes:
    """Return the message with its length before it."""
    body = encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frames; bounded by :data:`MAX_FRAME_BYTES`."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each complete body. Raises :class:`WireError` for a frame that is too long."""
        self._buffer += data
        start, end = 0, len(self._buffer)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {length} bytes is longer than {MAX_FRAME_BYTES}")
            if end - start - _LENGTH.size < length:
                break
            start += _LENGTH.size
            yield bytes(self._buffer[start : start + length])
            start += length
        if start:
            del self._buffer[:start]
