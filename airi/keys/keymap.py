"""All keys in memory: who presents this token? Microseconds, no I/O.

Records stay packed (about 120 bytes each) and are unpacked when a key is used; the unpacked ones are kept in a bounded
cache that is only believed while it was made from the bytes now in the map. A revocation therefore works from the
instant its entry is applied, whichever thread applies it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from airi.clock import unix_ms
from airi.keys.errors import InvalidKeyError, UnknownKeyError
from airi.keys.record import KeyRecord, pack, unpack

PREFIX = "airi_"
_MAX_TOKEN = 256
_MAX_UNPACKED = 4_096
_BLOCK = 64
_INCORRECT = "Incorrect API key provided. Make one with `airi key create`, or ask your administrator."


class Digester:
    """HMAC-SHA256 under the pepper, with the two padded blocks hashed once (RFC 2104, §4)."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, pepper: bytes) -> None:
        assert len(pepper) <= _BLOCK
        block = pepper.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def __call__(self, token: str) -> bytes:
        """Return the 32-byte digest of a token."""
        inner = self._inner.copy()
        inner.update(token.encode(errors="replace"))
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class KeyMap:
    """The keys as of ``seq``. One thread at a time applies entries; any thread authenticates meanwhile."""

    __slots__ = ("_digest", "_packed", "_unpacked", "seq")

    def __init__(self, pepper: bytes) -> None:
        self._digest = Digester(pepper)
        self._packed: dict[str, bytes] = {}
        self._unpacked: dict[str, tuple[bytes, KeyRecord]] = {}
        self.seq = 0
        """Every change up to this sequence number is in the map."""

    def __len__(self) -> int:
        return len(self._packed)

    def apply(self, entries: Iterable[tuple[int, KeyRecord]]) -> None:
        """Take in entries of the log, in rising order; those already known are skipped."""
        self.apply_packed((seq, record.id, pack(record)) for seq, record in entries)

    def apply_packed(self, entries: Iterable[tuple[int, str, bytes]]) -> None:
        """Take in ``(seq, key id, packed record)`` in rising order; those already known are skipped.

        Skipping is what keeps a slow reader's older page from reviving a key that a newer page has revoked.
        """
        packed = self._packed
        for seq, key_id, data in entries:
            if seq > self.seq:
                packed[key_id] = data
                self.seq = seq

    def get(self, key_id: str) -> KeyRecord | None:
        """Return a key's record by id, revoked and expired ones too."""
        data = self._packed.get(key_id)
        if data is None:
            return None
        found = self._unpacked.get(key_id)
        if found is not None and found[0] is data:
            return found[1]
        record = unpack(data)
        if len(self._unpacked) >= _MAX_UNPACKED:
            self._unpacked.clear()
        self._unpacked[key_id] = (data, record)
        return record

    def authenticate(self, token: str) -> KeyRecord:
        """Return the record of a live key.

        :class:`UnknownKeyError` when the id is not in the map (worth one refresh); :class:`InvalidKeyError` for a
        malformed token, a wrong secret, a revoked or an expired key. State is told only to holders of the secret.
        """
        if len(token) > _MAX_TOKEN or not token.startswith(PREFIX):
            raise InvalidKeyError(_INCORRECT)
        record = self.get(token[len(PREFIX) :].partition("_")[0])
        if record is None:
            raise UnknownKeyError(_INCORRECT)
        digest = self._digest(token)
        if not hmac.compare_digest(digest, record.digest) and not _retiring(record, digest):
            raise InvalidKeyError(_INCORRECT)
        check_alive(record)
        return record


def check_alive(record: KeyRecord) -> None:
    """Raise :class:`InvalidKeyError` when the key is revoked or has expired."""
    if record.revoked:
        raise InvalidKeyError(f"API key {record.id} has been revoked.", code="key_revoked")
    if record.expires_at_ms is not None and record.expires_at_ms <= unix_ms():
        raise InvalidKeyError(f"API key {record.id} has expired.", code="key_expired")


def _retiring(record: KeyRecord, digest: bytes) -> bool:
    """Whether the digest is that of a rotated secret still in its overlap."""
    return any(
        hmac.compare_digest(digest, old.digest) and old.until_ms > unix_ms() for old in record.retiring
    )
