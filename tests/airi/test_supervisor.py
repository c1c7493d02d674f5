"""The supervisor, driving toy processes: start, restart, order of the end, and its own sudden death."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from airi.settings import Settings
from airi.up.errors import StartError
from airi.up.guard import listed_groups
from airi.up.home import check_port_free, free_ports, lock_home, prepare_home, write_private
from tests.airi.toys import BROKEN, PARENT, STUBBORN, supervisor, toy


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.touch()
    return path


def entries(journal: Path) -> list[tuple[str, str, int]]:
    """What the toys wrote: (name, what, process)."""
    return [
        (name, what, int(pid))
        for name, what, pid in (line.split() for line in journal.read_text().splitlines())
    ]


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_what_is_needed_starts_first_and_the_end_has_an_order(journal: Path) -> None:
    said: list[str] = []
    specs = [toy("late", "late", journal, after=("early",)), toy("early", "early", journal)]
    tree = supervisor(specs, said.append, order=("late", "early"))
    await tree.start()
    assert [name for name, what, _ in entries(journal) if what == "starts"] == ["early", "late"]
    await tree.drain()
    assert [name for name, what, _ in entries(journal) if what == "ends"] == ["late", "early"]
    assert [line for line in said if line.startswith("stopping")] == ["stopping late", "stopping early"]


async def test_a_child_that_dies_is_started_again_and_said_so(journal: Path) -> None:
    said: list[str] = []
    tree = supervisor([toy("a", "a", journal)], said.append)
    await tree.start()
    first = tree.children["a"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(entries(journal)) == 2)
    assert "a was killed by SIGKILL; starting it again in 0.2 s" in said
    second = entries(journal)[1][2]
    os.kill(second, signal.SIGKILL)
    await until(lambda: len(entries(journal)) == 3)
    assert "a was killed by SIGKILL; starting it again in 0.4 s" in said
    await tree.drain()
    assert not alive(entries(journal)[2][2])


async def test_what_a_dead_child_had_started_is_killed_before_it_starts_again(journal: Path) -> None:
    tree = supervisor([toy("a", "a", journal, PARENT)], lambda _line: None)
    await tree.start()
    grandchild = entries(journal)[0][2]
    assert alive(grandchild)
    assert tree.children["a"].pid is not None
    os.kill(tree.children["a"].pid, signal.SIGKILL)
    await until(lambda: not alive(grandchild))
    await tree.kill()


async def test_a_child_that_cannot_start_stops_the_start_with_its_words(
    journal: Path, tmp_path: Path
) -> None:
    tree = supervisor([toy("a", "a", journal), toy("b", "b", journal, BROKEN)], lambda _line: None, tmp_path)
    with pytest.raises(StartError, match=r"b does not start; the end of .*b\.log:\ncannot open the flux"):
        await tree.start()
    await tree.kill()
    assert not alive(entries(journal)[0][2])


async def test_a_child_with_a_log_of_its_own_never_writes_to_standard_error(
    journal: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "own.log"
    tree = supervisor([toy("a", "a", journal, BROKEN, log=log)], lambda _line: None)
    with pytest.raises(StartError, match=r"a does not start; the end of .*own\.log:\ncannot open the flux"):
        await tree.start()
    await tree.kill()
    assert "flux" not in capfd.readouterr().err


async def test_a_log_that_has_grown_too_long_is_cut(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.up.supervisor.LOG_LIMIT_BYTES", 1_000)
    log = tmp_path / "own.log"
    log.write_bytes(b"x" * 1_001)
    tree = supervisor([toy("a", "a", journal, log=log), toy("b", "b", journal)], lambda _line: None)
    await tree.start()
    await until(lambda: log.stat().st_size == 0)
    assert (tmp_path / "own.log.1").read_bytes() == b"x" * 1_001
    await tree.kill()


async def test_what_is_not_awaited_comes_up_later_or_not_at_all(journal: Path) -> None:
    said: list[str] = []
    specs = [toy("a", "a", journal), toy("b", "b", journal, after=("a",), awaited=False)]
    tree = supervisor([*specs, toy("c", "c", journal, BROKEN, awaited=False)], said.append)
    await tree.start()
    await until(lambda: any(line.startswith("b ") and "ready after" in line for line in said))
    await until(lambda: any(line.startswith("c ended with status 3") for line in said))
    await tree.drain()
    assert [what for _, what, _ in entries(journal)].count("ends") == 2


async def test_a_child_that_will_not_end_is_killed_after_its_time(journal: Path) -> None:
    said: list[str] = []
    tree = supervisor([toy("a", "a", journal, STUBBORN, drain_s=0.3)], said.append)
    await tree.start()
    await tree.drain()
    assert "a did not end within 0 s: killed" in said
    assert not alive(entries(journal)[0][2])


async def test_a_guard_that_dies_is_replaced(journal: Path) -> None:
    said: list[str] = []
    tree = supervisor([toy("a", "a", journal)], said.append)
    await tree.start()
    tree._guard.kill()
    await until(lambda: "the guard has died; starting it again" in said)
    await tree.drain()
    assert tree._guard.returncode == 0


def test_five_seconds_after_a_kill_no_process_is_left(journal: Path) -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.airi.toys", str(journal)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "UP\n":
            break
    tree = psutil.Process(process.pid).children(recursive=True)
    assert len(tree) >= 5  # guard, a, b and b's two children, one of them in a session of its own
    process.kill()
    process.wait()
    process.stdout.close()
    _, left = psutil.wait_procs(tree, timeout=5)
    assert left == []


def test_two_starts_on_one_home_exclude_each_other(home: Path) -> None:
    prepare_home(Settings(home=home))
    descriptor = lock_home(home)
    with pytest.raises(StartError, match=f"already runs on {home} .process {os.getpid()}"):
        lock_home(home)
    os.close(descriptor)
    os.close(lock_home(home))


def test_a_home_is_free_only_when_its_last_process_has_ended(home: Path) -> None:
    prepare_home(Settings(home=home))
    descriptor = lock_home(home)
    left_behind = subprocess.Popen(["sleep", "0.5"], pass_fds=(descriptor,))
    os.pwrite(descriptor, b"999999999", 0)  # its supervisor is dead
    os.close(descriptor)
    began = time.monotonic()
    os.close(lock_home(home))
    assert time.monotonic() - began > 0.3
    left_behind.wait()


def test_home_is_private(home: Path) -> None:
    home.chmod(0o755)
    assert prepare_home(Settings(home=home))
    assert home.stat().st_mode & 0o777 == 0o700
    write_private(home / "key", "secret")
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


def test_a_taken_port_is_said_with_the_variable_to_change() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StartError, match=f"127.0.0.1:{port} is not free .*AIRI_PORT"):
            check_port_free("127.0.0.1", port, "AIRI_PORT")
        ports = free_ports(2, [port])
        assert port not in ports
        assert len(set(ports)) == 2
        assert all(20_000 <= found < 29_000 for found in ports), (
            "no outgoing connection may take one meanwhile"
        )
    assert free_ports(1, [port]) == [port]
    with pytest.raises(StartError, match=r"AIRI_HOST: 192\.0\.2\.1 is no address of this machine"):
        check_port_free("192.0.2.1", port, "AIRI_PORT")


def test_a_home_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"file/home cannot be made .* choose another AIRI_HOME"):
        prepare_home(Settings(home=tmp_path / "file" / "home"))


def test_the_guard_reads_what_lives() -> None:
    assert listed_groups(["+1\n", "+2\n", "-1\n", "+3"]) == {2}
