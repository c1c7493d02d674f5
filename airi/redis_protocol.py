"""What is said to Redis: addresses, commands in RESP, scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from airi.errors import ConfigError

Argument = bytes | str | int | float


def bulk(data: bytes) -> bytes:
    """Return ``data`` as a RESP bulk string; callers keep what never changes in this form."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def encode(args: Sequence[Argument]) -> bytes:
    """Return a whole command in RESP."""
    parts = [bulk(arg if isinstance(arg, bytes) else str(arg).encode()) for arg in args]
    return b"*%d\r\n" % len(args) + b"".join(parts)


class Script:
    """A Lua script; :attr:`sha` names it to ``EVALSHA``."""

    __slots__ = ("load_command", "name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        self.load_command = encode(("SCRIPT", "LOAD", source))

    def head(self, keys: int, args: int) -> bytes:
        """Return the start of an EVALSHA with this many keys and arguments; their bulks follow it."""
        return (
            b"*%d\r\n" % (3 + keys + args) + bulk(b"EVALSHA") + bulk(self.sha.encode()) + bulk(b"%d" % keys)
        )


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is. ``options`` are ``ssl_ca_certs``, ``ssl_certfile`` and ``ssl_keyfile`` (paths)."""

    path: str = ""
    host: str = "localhost"
    port: int = 6379
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``unix://PATH?db=0``, ``redis://[USER:PASSWORD@]HOST[:PORT][/DB]`` or ``rediss://…`` as redis-py does."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        database = options.pop("db", "") or ("" if parts.scheme == "unix" else parts.path.strip("/")) or "0"
        if parts.scheme not in ("unix", "redis", "rediss") or not database.isdigit():
            raise ConfigError(
                ["the Redis URL must be redis://, rediss:// or unix://, with a number as database"]
            )
        return cls(
            path=unquote(parts.path) if parts.scheme == "unix" else "",
            host=parts.hostname or "localhost",
            port=parts.port or 6379,
            tls=parts.scheme == "rediss",
            username=unquote(parts.username or options.pop("username", "")),
            password=unquote(parts.password or options.pop("password", "")),
            database=int(database),
            options=options,
        )
