"""``airi doctor``: what is wrong with this machine, this environment or this home, and what to do about it."""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from airi.cli.output import show
from airi.cli.runner import Parser, command
from airi.errors import AiriError
from airi.settings import Settings

_OLDEST_PYTHON = (3, 11)
_OLDEST_SQLITE = (3, 35, 0)  # RETURNING, DROP COLUMN
_FEW_FILES = 4_096
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_ROOMS = ("agents", "gateway", "policies", "routing", "observability")


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ``bad`` stops AIRI from working, ``odd`` deserves a look."""

    check: str
    state: Literal["good", "odd", "bad"]
    text: str


def _python(_settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    state: Literal["good", "bad"] = "good" if sys.version_info >= _OLDEST_PYTHON else "bad"
    yield Finding(
        "python", state, f"{version} at {sys.executable}" + ("" if state == "good" else "; AIRI needs 3.11")
    )


def _packages(_settings: Settings) -> Iterator[Finding]:
    from airi.up.specs import package_root

    root = package_root()
    for room in _ROOMS:
        spec = find_spec(room)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or not origin.is_relative_to(root):
            yield Finding(
                "packages",
                "bad",
                f"`import {room}` finds {origin or 'nothing'}, not AIRI's own in {root}: another library has the same "
                "name. Give AIRI an environment of its own (make run makes one)",
            )
    try:
        clash = metadata.version("openai-agents")
    except metadata.PackageNotFoundError:
        yield Finding("packages", "good", f"AIRI's own packages are found in {root}")
    else:
        yield Finding(
            "packages",
            "odd",
            f"openai-agents {clash} is installed here; its package is named `agents` as AIRI's is",
        )
    try:
        litellm = metadata.version("litellm")
    except metadata.PackageNotFoundError:
        yield Finding("litellm", "odd", "not installed: prices and translated providers are missing")
    else:
        from routing.adapters.litellm_sdk import KNOWN_BAD_VERSIONS

        reason = KNOWN_BAD_VERSIONS.get(litellm)
        if reason is None:
            yield Finding("litellm", "good", litellm)
        else:
            yield Finding("litellm", "bad", f"{litellm} {reason}: remove it NOW")


def _redis(settings: Settings) -> Iterator[Finding]:
    from airi.embedded.redis import find_redis

    if settings.redis_url is None:
        try:
            binary = find_redis()
        except AiriError as error:
            yield Finding("redis", "bad", error.message)
        else:
            yield Finding("redis", "good", f"{binary.path} ({binary.source})")
        if _OVERCOMMIT.exists() and _OVERCOMMIT.read_text().strip() == "0":
            yield Finding(
                "memory",
                "odd",
                "Redis cannot rewrite its file when memory is short: sysctl vm.overcommit_memory=1",
            )
        return
    import redis

    from airi.redis import connect

    try:
        with connect(settings.redis_url) as client:
            version = client.info("server")["redis_version"]
        yield Finding("redis", "good", f"AIRI_REDIS_URL answers (version {version})")
    except (redis.RedisError, ValueError) as error:
        yield Finding("redis", "bad", f"AIRI_REDIS_URL does not answer: {type(error).__name__}")


def _databases(settings: Settings) -> Iterator[Finding]:
    version = sqlite3.sqlite_version
    good = sqlite3.sqlite_version_info >= _OLDEST_SQLITE
    yield Finding("sqlite", "good" if good else "bad", version + ("" if good else "; AIRI needs 3.35"))
    if settings.database_url is None:
        return
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from airi.database import open_engine

    try:
        engine = open_engine(settings.database_url, full_sync=True)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        engine.dispose()
        yield Finding("database", "good", f"AIRI_DATABASE_URL answers ({engine.dialect.name})")
    except (SQLAlchemyError, AiriError) as error:
        yield Finding("database", "bad", f"AIRI_DATABASE_URL does not answer: {type(error).__name__}")


def _ports(settings: Settings) -> Iterator[Finding]:
    from airi.up.errors import StartError
    from airi.up.home import check_port_free
    from airi.up.reach import ask

    for port, variable in ((settings.port, "AIRI_PORT"), (settings.admin_port, "AIRI_ADMIN_PORT")):
        if port is None:
            continue
        try:
            check_port_free(settings.host, port, variable)
            yield Finding("port", "good", f"{port} ({variable}) is free")
        except StartError as error:
            status, _ = ask(settings.effective_gateway_url, "/readyz")
            if status == 200:
                yield Finding("port", "good", f"{port} ({variable}): a gateway answers there and is ready")
            else:
                yield Finding("port", "bad", error.message)


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home
    if not home.exists():
        yield Finding("home", "good", f"{home} will be made at the first start")
        return
    found = home.stat()
    if found.st_uid != os.getuid():
        yield Finding("home", "bad", f"{home} belongs to another user (uid {found.st_uid})")
    elif stat.S_IMODE(found.st_mode) & 0o077:
        yield Finding("home", "odd", f"{home} can be read by others: chmod 700 {home}")
    else:
        yield Finding("home", "good", str(home))
    for name in ("admin.key", "dev.key", "secret.key"):
        path = home / name
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(
                "keys", "bad", f"{path} can be read by others: chmod 600 {path}, and replace the key"
            )
    with socket.socket(socket.AF_UNIX) as probe:
        trial = settings.sockets / "doctor.sock"
        try:
            trial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            trial.unlink(missing_ok=True)
            probe.bind(str(trial))
            trial.unlink()
        except OSError as error:
            yield Finding(
                "sockets", "bad", f"unix sockets cannot be made in {settings.sockets}: {error.strerror}"
            )


def _secret_key(settings: Settings) -> Iterator[Finding]:
    path = settings.home / "secret.key"
    if settings.secret_key is not None:
        yield Finding("secret key", "good", "AIRI_SECRET_KEY is set")
    elif settings.database_url is not None:
        yield Finding(
            "secret key", "odd",
            "AIRI_SECRET_KEY is not set, but the database is shared: every machine needs the same one",
        )  # fmt: skip
    else:
        yield Finding("secret key", "good", f"{path}" + ("" if path.exists() else " will be made"))


def _limits(_settings: Settings) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        yield Finding("open files", "odd", f"at most {hard}: too few for many connections (ulimit -Hn)")
    else:
        yield Finding("open files", "good", "enough")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _redis,
    _databases,
    _ports,
    _home,
    _secret_key,
    _limits,
)


def examine(settings: Settings) -> list[Finding]:
    """Run every check."""
    return [finding for check in CHECKS for finding in check(settings)]


def _run(arguments: argparse.Namespace) -> int:
    findings = examine(Settings.from_environment())
    marks = {"good": "ok ", "odd": "?  ", "bad": "NO "}
    show(
        arguments,
        [asdict(finding) for finding in findings],
        lambda: "\n".join(f"{marks[f.state]} {f.check:<11} {f.text}" for f in findings),
    )
    return int(any(finding.state == "bad" for finding in findings))


def _parser() -> Parser:
    return command(
        "doctor",
        "Look for what is wrong with this machine, this environment or AIRI_HOME. Exit code 1 when AIRI cannot work.",
        "airi doctor --output json",
        _run,
    )


PARSERS = {"doctor": _parser}
