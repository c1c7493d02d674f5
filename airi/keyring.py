"""The key ring: what AIRI seals, wraps and signs with, and how that key is rotated.

``AIRI_SECRET_KEY`` is a comma list. The first member seals and signs; every member still opens and verifies. To
rotate: put the new key first, restart, run the reseal (:func:`airi.vault.Vault.reseal`), remove the old member.
Without the variable a key is generated into ``AIRI_HOME/secret.key`` (mode 0600).

Each purpose has a key of its own, derived with HKDF-SHA256 (RFC 5869), so that a signature can never be taken for
a sealed value's key. The pepper of API keys is *not* derived from the ring: digests cannot be made again without
the callers' secrets, so it is random, sealed in the vault, and survives rotation.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import tempfile
from binascii import Error as Base64Error
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from airi.errors import AiriError, ConfigError
from airi.secrets import Secret
from airi.settings import MIN_SECRET_CHARACTERS, Settings

_NONCE_BYTES = 12
_ID_BYTES = 4
_MAC_BYTES = 32
SIGNATURE_BYTES = _ID_BYTES + _MAC_BYTES
_FORMAT = "v1"


class SealError(AiriError):
    """A sealed value cannot be opened: its key left the ring, or it was changed or moved."""

    code = "cannot_open_sealed_value"


class _Member:
    """One key of the ring with its derived keys."""

    __slots__ = ("_root", "_signing", "id", "sealing")

    def __init__(self, text: str) -> None:
        self._root = text.encode()
        self.id = self._derive("key id", _ID_BYTES)
        self.sealing = AESGCM(self._derive("sealing", 32))
        self._signing: dict[str, bytes] = {}

    def _derive(self, purpose: str, length: int) -> bytes:
        info = f"airi {purpose} v1".encode()
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self._root)

    def mac(self, data: bytes, purpose: str) -> bytes:
        key = self._signing.get(purpose)
        if key is None:  # a handful of purposes, all named in code
            key = self._signing[purpose] = self._derive(f"signing {purpose}", 32)
        return hmac.digest(key, data, hashlib.sha256)


class KeyRing:
    """Seals (AES-256-GCM) and signs (HMAC-SHA256) with the first member, opens and verifies with any."""

    def __init__(self, members: list[Secret]) -> None:
        """Make a ring; :class:`ConfigError` when it is empty or a member is shorter than 32 characters."""
        if not members:
            raise ConfigError(["AIRI_SECRET_KEY: no key given"])
        if any(len(member.reveal()) < MIN_SECRET_CHARACTERS for member in members):
            raise ConfigError(
                [f"AIRI_SECRET_KEY: each key needs at least {MIN_SECRET_CHARACTERS} random characters; make one with "
                 "`openssl rand -base64 32`"]
            )  # fmt: skip
        made = [_Member(member.reveal()) for member in members]
        self._first = made[0]
        self._by_id = {member.id: member for member in reversed(made)}

    @classmethod
    def open_for(cls, settings: Settings) -> KeyRing:
        """Return the ring of the environment, or of ``AIRI_HOME/secret.key``, made when it is missing."""
        if settings.secret_key:
            return cls(
                [Secret(part.strip()) for part in settings.secret_key.reveal().split(",") if part.strip()]
            )
        return cls([read_or_make_key(secret_key_file(settings))])

    @property
    def current_id(self) -> str:
        """Name of the member that seals now (8 hex digits; tells nothing of the key)."""
        return self._first.id.hex()

    def seal(self, plain: bytes, context: str) -> str:
        """Encrypt; the result opens only with the same ``context`` (kind, name and field, say)."""
        nonce = os.urandom(_NONCE_BYTES)
        box = nonce + self._first.sealing.encrypt(nonce, plain, _aad(context))
        return f"{_FORMAT}.{self.current_id}.{base64.urlsafe_b64encode(box).decode()}"

    def open(self, sealed: str, context: str) -> bytes:
        """Decrypt what :meth:`seal` made; :class:`SealError` when key, content or context do not fit."""
        try:
            form, key_id, text = sealed.split(".")
            member = self._by_id.get(bytes.fromhex(key_id))
            box = base64.urlsafe_b64decode(text)
        except (ValueError, Base64Error) as error:
            raise SealError("this is not a sealed value of AIRI") from error
        if form != _FORMAT or len(box) < _NONCE_BYTES:
            raise SealError("this is not a sealed value of AIRI")
        if member is None:
            raise SealError(
                f"a stored value was sealed with key {key_id}, which is not in AIRI_SECRET_KEY: add the old key as a "
                "later member of the list (AIRI_HOME/secret.key holds the generated one), then reseal"
            )
        try:
            return member.sealing.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], _aad(context))
        except InvalidTag as error:
            raise SealError("a sealed value was changed, or belongs to another place") from error

    def sealed_with_current(self, sealed: str) -> bool:
        """Whether the first member sealed this."""
        return sealed.startswith(f"{_FORMAT}.{self.current_id}.")

    def sign(self, data: bytes, purpose: str = "general") -> bytes:
        """Return a signature of :data:`SIGNATURE_BYTES`: key id, then HMAC-SHA256 under the purpose's key."""
        return self._first.id + self._first.mac(data, purpose)

    def verify(self, data: bytes, signature: bytes, purpose: str = "general") -> bool:
        """Whether a member of the ring made ``signature``; constant time in the signature's bytes."""
        member = self._by_id.get(signature[:_ID_BYTES])
        return (
            member is not None
            and len(signature) == SIGNATURE_BYTES
            and hmac.compare_digest(member.mac(data, purpose), signature[_ID_BYTES:])
        )


def _aad(context: str) -> bytes:
    return f"{_FORMAT}|{context}".encode()


def secret_key_file(settings: Settings) -> Path:
    """Where the generated key lies when ``AIRI_SECRET_KEY`` is not set."""
    return settings.home / "secret.key"


def admin_key(settings: Settings) -> Secret:
    """Return the administrator's key: ``AIRI_ADMIN_KEY`` or ``AIRI_HOME/admin.key``, made when missing."""
    return settings.admin_key or read_or_make_key(settings.home / "admin.key", prefix="airi_admin_")


def read_or_make_key(path: Path, prefix: str = "") -> Secret:
    """Return the key in ``path``, generating 256 random bits into it (mode 0600) when it does not exist.

    Processes that start together agree: the file appears complete, by a link that the first one wins.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(f"{prefix}{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(name, path)
        except FileExistsError:
            pass  # another process was first: its key is the key
        finally:
            Path(name).unlink()
    if path.stat().st_mode & 0o077:
        raise ConfigError([f"{path}: others may read this key; run `chmod 600 {path}`"])
    text = path.read_text().strip()
    if not text:
        raise ConfigError([f"{path}: the file is empty; restore it from a backup"])
    return Secret(text)
