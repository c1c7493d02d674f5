"""Reading an issuer's keys: from a file, from their address, or from where the issuer's discovery document says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from airi.config.kinds import Identity
from airi.http.client import ClientOptions, HttpPool, TlsOptions
from airi.http.errors import HttpClientError

MAX_BYTES = 256 * 1024
_TIMEOUT_MS = 4_000
_DISCOVERY = "/.well-known/openid-configuration"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class _Discovery(msgspec.Struct):
    issuer: str
    jwks_uri: str


async def fetch_keys(identity: Identity) -> bytes:
    """Return the JWKS as it came, at most 256 KiB. Raises ``ValueError`` or ``OSError`` that say what is wrong."""
    if identity.jwks_file is not None:
        return await asyncio.to_thread(_read_file, Path(identity.jwks_file))
    if identity.jwks_url is not None:
        return await _get(identity, identity.jwks_url)
    raw = await _get(identity, identity.issuer.rstrip("/") + _DISCOVERY)
    try:
        found = msgspec.json.decode(raw, type=_Discovery)
    except msgspec.MsgspecError as error:
        raise ValueError("the issuer's discovery document cannot be read") from error
    if found.issuer != identity.issuer:
        raise ValueError(f"the discovery document is of issuer {found.issuer[:200]!r}")
    return await _get(identity, found.jwks_uri)


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


async def _get(identity: Identity, url: str) -> bytes:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError(f"{url[:200]!r}: keys are read over https alone")
    tls = TlsOptions(
        identity.tls.ca_file,
        identity.tls.client_certificate,
        identity.tls.client_key,
        identity.tls.server_name,
    )
    pool = HttpPool(f"{parts.scheme}://{parts.netloc}", options=ClientOptions(max_connections=1, tls=tls))
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        response = await pool.send(
            b"GET", target.encode(), [(b"accept", b"application/json")], b"",
            first_byte_ms=_TIMEOUT_MS, idle_ms=_TIMEOUT_MS, total_ms=_TIMEOUT_MS,
        )  # fmt: skip
        data = await response.read(MAX_BYTES)
    except HttpClientError as error:
        raise ValueError(f"{parts.netloc} does not answer: {error}") from error
    finally:
        pool.close()
    if response.status != 200:
        raise ValueError(f"{parts.netloc} answered {response.status}")
    return data
