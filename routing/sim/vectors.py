"""Embeddings without a model: hashed features of words and word pairs, so that like texts lie near each other."""

from __future__ import annotations

import base64
import math
import struct
import zlib

from routing.sim import tokens

DEFAULT_DIMENSIONS = 384
MAX_DIMENSIONS = 4096


def embed(text: str, dimensions: int) -> list[float]:
    """Return a unit vector of ``text``; the same on every machine (feature hashing, Weinberger et al. 2009)."""
    vector = [0.0] * dimensions
    pieces = [piece.strip().lower() for piece in tokens.split(text)]
    before = ""
    for piece in pieces:
        for feature, weight in ((piece, 1.0), (f"{before} {piece}", 0.5)):
            value = zlib.crc32(feature.encode("utf-8", "replace"))
            vector[value % dimensions] += weight if value & 0x8000_0000 else -weight
        before = piece
    length = math.sqrt(sum([x * x for x in vector]))
    if not length:
        vector[0] = length = 1.0
    return [x / length for x in vector]


def encode_base64(vector: list[float]) -> str:
    """Return little-endian 32-bit floats in base64, as OpenAI's ``encoding_format`` has it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
