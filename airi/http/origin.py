"""Where an upstream is, and by which way: direct, over a unix socket, or through a proxy of the environment."""

from __future__ import annotations

import base64
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from airi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """A parsed origin. ``path`` is set for unix sockets alone."""

    scheme: str
    host: str
    port: int
    path: str | None = None

    @property
    def authority(self) -> bytes:
        """The value of the host header: the port only where it is not the scheme's own."""
        if self.path is not None:
            return b"localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return (host if self.port == default else f"{host}:{self.port}").encode()

    def __str__(self) -> str:
        """Return the origin without anything secret."""
        return f"unix:{self.path}" if self.path is not None else f"{self.scheme}://{self.authority.decode()}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; ``authorization`` is the header's value, or empty."""

    host: str
    port: int
    authorization: bytes


def parse_origin(text: str) -> Origin:
    """Parse ``http://h:p``, ``https://h`` or ``unix:/path``; raise :class:`ConfigError` on anything else."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigError([f"{text!r}: the path of a unix socket is absolute (unix:/run/x.sock)"])
        return Origin("http", "localhost", 80, path)
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError([f"{text!r}: {error}"]) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            [f"{text!r} is not an origin: expected http://host:port, https://host or unix:/path"]
        )
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError([f"{parts.hostname!r}: an origin is scheme, host and port alone"])
    return Origin(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80))


def proxy_for(origin: Origin, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """Return the proxy the environment names for ``origin``; never one for loopback or a unix socket."""
    env = os.environ if environment is None else environment
    if origin.path is not None or _is_loopback(origin.host):
        return None
    if _excluded(origin, env.get("no_proxy") or env.get("NO_PROXY") or ""):
        return None
    name = f"{origin.scheme}_proxy"
    value = env.get(name) or env.get(name.upper()) or env.get("all_proxy") or env.get("ALL_PROXY")
    if not value:
        return None
    parts = urlsplit(value if "://" in value else f"http://{value}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError([f"{name}: only http:// proxies are spoken to, not {parts.scheme}://"])
    authorization = b""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Basic " + base64.b64encode(pair.encode())
    return Proxy(parts.hostname, parts.port or 80, authorization)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _excluded(origin: Origin, no_proxy: str) -> bool:
    host = origin.host.lower()
    for entry in no_proxy.lower().split(","):
        entry = entry.strip()
        if not entry:
            continue
        if entry == "*":
            return True
        if "/" in entry and _in_network(host, entry):
            return True
        name, _, port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        if port and port != str(origin.port):
            continue
        name = name.strip("[]").removeprefix("*").removeprefix(".")
        if host == name or host.endswith(f".{name}"):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
