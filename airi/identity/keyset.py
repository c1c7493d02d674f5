"""An issuer's public keys (JWKS, RFC 7517), fetched off the calls' way and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from airi.config.kinds import Identity
from airi.errors import AiriError
from airi.identity.errors import IdentityUnavailableError, TokenRefusedError

MAX_AGE_S = 600.0
"""Keys are read anew, in the background, when they are older than this and in use."""
MAX_STALE_S = 24 * 3_600.0
"""How long keys serve while their issuer cannot be read."""
COOLDOWN_S = 10.0
"""Between two readings, however many tokens name keys that nobody knows."""
WAIT_S = 5.0
MAX_KEYS = 64
_MIN_RSA_BITS = 2_048
_KINDS = {"RSA", "EC", "OKP"}
_log = logging.getLogger("airi.identity")
Fetch = Callable[[Identity], Awaitable[bytes]]


class SigningKey(NamedTuple):
    """A public key as ``cryptography`` holds it, and the one algorithm that its issuer names for it, if any."""

    key: Any
    algorithm: str | None


class KeySet:
    """The keys of one issuer. Everything here runs on one event loop."""

    def __init__(
        self, identity: Identity, fetch: Fetch, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._identity = identity
        self._fetch = fetch
        self._now = now
        self._keys: Mapping[str | None, SigningKey] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self.problem = ""
        """Why the last reading failed; empty when it did not."""

    def prefetch(self) -> None:
        """Begin to read the keys, if that is due; nobody waits for it."""
        if self._reading is None and self._now() - self._tried_at >= COOLDOWN_S:
            self._begin()

    async def find(self, kid: str | None) -> SigningKey:
        """Return the key that a token names; one that is not known is looked for once, at most every :data:`COOLDOWN_S`.

        Raises :class:`TokenRefusedError` when the issuer has no such key, :class:`IdentityUnavailableError` when it
        cannot be asked: an outage must never look like a wrong token.
        """
        age = self._now() - self._read_at
        if age > MAX_AGE_S:
            self.prefetch()
        if age <= MAX_STALE_S and kid in self._keys:
            return self._keys[kid]
        await self._read_now()
        found = self._keys.get(kid) if self._now() - self._read_at <= MAX_STALE_S else None
        if found is not None:
            return found
        if self.problem:
            raise IdentityUnavailableError(
                "The issuer's keys cannot be read, so the token cannot be checked. Try again, or use an API key.",
                retry_after_ms=round(COOLDOWN_S * 1_000),
            )
        raise TokenRefusedError("The token is signed with a key that its issuer does not publish.")

    async def _read_now(self) -> None:
        """Wait for a reading that is under way, or for a new one where the last is long enough ago."""
        self.prefetch()
        if self._reading is not None:
            try:
                async with asyncio.timeout(WAIT_S):
                    await asyncio.shield(self._reading)
            except TimeoutError:
                self.problem = self.problem or f"no answer within {WAIT_S:.0f} s"

    def _begin(self) -> None:
        self._tried_at = self._now()
        self._reading = asyncio.get_running_loop().create_task(self._read(), name="issuer keys")
        self._reading.add_done_callback(self._done)

    def _done(self, _task: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        try:
            data = await self._fetch(self._identity)
            # In a thread: the library for it takes its time to be imported, and RSA keys theirs to be checked.
            self._keys = await asyncio.to_thread(parse, data)
        except (AiriError, OSError, ValueError) as error:
            if not self.problem:
                _log.warning(
                    "the issuer's keys cannot be read",
                    extra={"issuer": self._identity.issuer, "error": str(error)},
                )
            self.problem = str(error) or type(error).__name__
        else:
            self._read_at = self._now()
            self.problem = ""


def parse(data: bytes) -> dict[str | None, SigningKey]:
    """Return the signing keys of a JWKS by ``kid``; a single one also stands under ``None``. Raises ``ValueError``.

    Symmetric keys, keys for encryption and RSA keys of less than 2,048 bits are left out.
    """
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    try:
        items = msgspec.json.decode(data, type=dict[str, Any])["keys"]
        candidates = [item for item in items if item.get("kty") in _KINDS and item.get("use", "sig") == "sig"]
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("the answer is not a JSON Web Key Set") from error
    found: dict[str | None, SigningKey] = {}
    for item in candidates[:MAX_KEYS]:
        try:
            key = PyJWK(item)
        except (PyJWTError, ValueError, TypeError, KeyError):
            continue  # of a kind that this release does not know; the others serve
        if item["kty"] != "RSA" or key.key.key_size >= _MIN_RSA_BITS:
            found[key.key_id] = SigningKey(key.key, item.get("alg"))
    if not found:
        raise ValueError("the issuer publishes no key that can be used")
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found
