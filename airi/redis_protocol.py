"""What is said to Redis: addresses, commands in RESP, scripts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from airi.errors import ConfigError

Argument = bytes | str | int | float
_SCHEMES = ("redis", "rediss", "unix")
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_OPTIONS = ("db", "username", "password", "ssl_cert_reqs", *_TLS_FILES)
_FORM = "it must be redis://, rediss:// or unix://, with a number as database"
_ESCAPE = "it cannot be read; characters such as / ? # in a password are written as %2F %3F %23"


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
    """Where a Redis is, and who we are there.

    ``options`` are ``ssl_ca_certs``, ``ssl_certfile`` and ``ssl_keyfile`` (paths). All of AIRI's clients of Redis are made
    from this, so that one URL means the same to each of them; certificates are always verified.
    """

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
        """Read ``unix://PATH?db=0``, ``redis://[USER:PASSWORD@]HOST[:PORT][/DB]`` or ``rediss://…``.

        Raises :class:`~airi.errors.ConfigError`, which tells what is expected and nothing of what was given: a password with
        an unescaped character makes any part of the URL a part of the password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigError([_ESCAPE]) from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        _check(parts.scheme, options, parts.fragment)
        database = options.pop("db", "") or ("" if parts.scheme == "unix" else parts.path.strip("/")) or "0"
        if not database.isdigit():
            raise ConfigError([_FORM])
        username, password = options.pop("username", ""), options.pop("password", "")
        options.pop("ssl_cert_reqs", None)
        return cls(
            path=unquote(parts.path) if parts.scheme == "unix" else "",
            host=parts.hostname or "localhost",
            port=port or 6379,
            tls=parts.scheme == "rediss",
            username=unquote(parts.username or "") or username,
            password=unquote(parts.password or "") or password,
            database=int(database),
            options=options,
        )


def is_address(url: str) -> bool:
    """Say whether a URL has one of the schemes that :meth:`Address.parse` reads."""
    return url.partition("://")[0] in _SCHEMES


def _check(scheme: str, options: Mapping[str, str], fragment: str) -> None:
    """Refuse what would be understood in another way than it was meant."""
    if scheme not in _SCHEMES:
        raise ConfigError([_FORM])
    if fragment:
        raise ConfigError([_ESCAPE])
    if not set(options) <= set(_OPTIONS):
        raise ConfigError([f"after ? it may have {', '.join(_OPTIONS)}, and no more"])
    if scheme != "rediss" and any(name.startswith("ssl_") for name in options):
        raise ConfigError(["options that begin with ssl_ belong to rediss://"])
    if options.get("ssl_cert_reqs", "required") != "required":
        raise ConfigError(["certificates are always verified: name your authority with ssl_ca_certs=FILE"])
