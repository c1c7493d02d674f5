"""``airi up``: everything on one machine, from nothing to the line ``AIRI ready on …`` and back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

from airi.http.tls import server_context
from airi.settings import Settings
from airi.up.adopt import Adoption, adopt, earlier_sim_ports, write_adopted
from airi.up.engines import find_engines
from airi.up.errors import StartError
from airi.up.home import check_port_free, free_ports, lock_home, prepare_home
from airi.up.reach import ask, refused_configuration
from airi.up.specs import DRAIN_ORDER, module, package_root, tree
from airi.up.supervisor import Supervisor

_SERVES_WITHIN_S = 60.0
_ASK_EVERY_S = 0.05
_OPEN_FILES = 65_536


def say(line: str) -> None:
    """Print a line for the person; a terminal that has gone away is no reason to stop."""
    with contextlib.suppress(OSError):
        print(line, flush=True)  # noqa: T201  # this is the command's output


async def up(settings: Settings, *, logs_to_files: bool, only: Collection[str] = DRAIN_ORDER) -> int:
    """Run the tree, or ``only`` some roles of it, until a signal; return the exit status."""
    stop = _signals()
    os.umask(0o077)
    _raise_open_files()
    if settings.tls_certificate is not None and settings.tls_key is not None:
        server_context(settings.tls_certificate, settings.tls_key)  # said here once, not by each gateway
    first = prepare_home(settings)
    lock = lock_home(settings.home)
    try:
        if "gateway" in only:
            check_port_free(settings.host, settings.port, "AIRI_PORT")
        if settings.admin_port is not None:
            check_port_free(settings.host, settings.admin_port, "AIRI_ADMIN_PORT")
        say(
            f"AIRI starts in {settings.home}" + (" (first start: making databases and keys)" if first else "")
        )
        adoption = await _adopt(settings)
        supervisor = Supervisor(
            tree(settings, _ports(adoption), only),
            environment=_environment(settings),
            say=lambda line: say(f"  {line}"),
            drain_order=DRAIN_ORDER,
            logs=settings.home / "logs" if logs_to_files else None,
            keep_open=(lock,),
        )
        return await _run(settings, supervisor, adoption, stop)
    finally:
        os.close(lock)


async def _run(
    settings: Settings, supervisor: Supervisor, adoption: Adoption, stop: asyncio.Queue[str]
) -> int:
    stopping = asyncio.create_task(stop.get())
    starting = asyncio.create_task(_start(settings, supervisor))
    await asyncio.wait([stopping, starting], return_when=asyncio.FIRST_COMPLETED)
    try:
        if starting.done():
            models = starting.result()
            refused = await asyncio.to_thread(refused_configuration, settings) if settings.config else ""
            _announce(settings, adoption, models, refused)
        else:  # a signal during the start
            starting.cancel()
            await asyncio.wait([starting])
        name = await stopping
    except StartError as error:
        stopping.cancel()
        await supervisor.kill()
        sys.stderr.write(f"airi: {error}\n")
        return 1
    say(f"{name}: stopping; running calls and steps get up to 30 s (again: stop at once)")
    draining = asyncio.create_task(supervisor.drain())
    impatient = asyncio.create_task(stop.get())
    await asyncio.wait([draining, impatient], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        draining.cancel()
        await asyncio.wait([draining])
        await supervisor.kill()
    impatient.cancel()
    say("AIRI has stopped")
    return 0


async def _start(settings: Settings, supervisor: Supervisor) -> list[str]:
    """Start the tree, make the development key when it is missing or unknown, and return the models served."""
    await supervisor.start()
    if not any(child.spec.role == "gateway" for child in supervisor.children.values()):
        return []
    base = settings.effective_gateway_url
    end = time.monotonic() + _SERVES_WITHIN_S
    await _until_ready(base, end)
    key_file = settings.home / "dev.key"
    if not key_file.exists():
        await _make_dev_key()
    remade = False
    while True:
        status, body = await asyncio.to_thread(ask, base, "/v1/models", key_file.read_text().strip())
        models = [str(entry.get("id")) for entry in body.get("data", [])]
        if status == 200 and models:
            return models
        if status == 401 and not remade:  # the database is another than the one this key was made in
            remade = True
            await _make_dev_key()
        if time.monotonic() > end:
            raise StartError(f"{base}/v1/models does not answer the development key (status {status})")
        await asyncio.sleep(_ASK_EVERY_S)


async def _until_ready(base: str, end: float) -> None:
    while True:
        status, body = await asyncio.to_thread(ask, base, "/readyz")
        if status == 200:
            return
        if time.monotonic() > end:
            raise StartError(f"{base}/readyz is not ready (status {status}): {body}")
        await asyncio.sleep(_ASK_EVERY_S)


async def _make_dev_key() -> None:
    environment = {**os.environ, "PYTHONPATH": python_path()}
    process = await asyncio.create_subprocess_exec(*module("airi.up.devkey"), env=environment)
    if await process.wait() != 0:
        raise StartError("the development key could not be made")


async def _adopt(settings: Settings) -> Adoption:
    """Find what there is, write it down for the control plane, and make the administrator's key."""
    path = settings.home / "adopted.yaml"
    ports = free_ports(settings.sim_replicas, earlier_sim_ports(path))
    adoption = adopt(ports, await find_engines(), os.environ)
    write_adopted(path, adoption)
    if settings.admin_key is None and not (settings.home / "admin.key").exists():
        from airi.keyring import admin_key  # cryptography: only a first start pays for it

        admin_key(settings)
    return adoption


def _ports(adoption: Adoption) -> list[int]:
    pool = next(r for r in adoption.resources if r["kind"] == "Pool" and r.get("engine") == "sim")
    return [int(replica["url"].rpartition(":")[2]) for replica in pool["replicas"]]


def _environment(settings: Settings) -> dict[str, str]:
    """What all children get: this process's environment, with every path made absolute."""
    environment = {
        **os.environ,
        "AIRI_HOME": str(settings.home),
        "PYTHONPATH": python_path(),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    if settings.config is not None:
        environment["AIRI_CONFIG"] = str(settings.config)
    return environment


def python_path() -> str:
    """AIRI's own packages before anything of the working directory, which may hold the user's tools."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(package_root()), *filter(None, given), str(Path.cwd())]))


def _signals() -> asyncio.Queue[str]:
    """Return a queue that gets the name of each signal that asks for the end."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, queue.put_nowait, number.name)
    return queue


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a limit that we may not raise is no reason to stop
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _announce(settings: Settings, adoption: Adoption, served: list[str], refused: str) -> None:
    if not served:  # a part of the tree; the address belongs to another one
        say("AIRI's parts run here")
        return
    base = settings.effective_gateway_url
    simulated = {alias for alias, _, is_simulated in adoption.models if is_simulated}
    where = {alias: place for alias, place, _ in adoption.models}
    say("")
    say("models")
    for alias in sorted(served):
        notes = [where[alias]] if alias in where else []
        notes += ["simulated"] if alias in simulated else []
        say(f"  {alias:<36} {', '.join(notes)}".rstrip())
    admin = "AIRI_ADMIN_KEY" if settings.admin_key is not None else str(settings.home / "admin.key")
    say(f"keys\n  administrator   {admin}\n  development     {settings.home / 'dev.key'}")
    verify = "-k " if settings.tls_certificate else ""
    body = '{"model": "fast", "messages": [{"role": "user", "content": "Say hello."}]}'
    say(
        f'try it\n  curl {verify}{base}/v1/chat/completions -H "Authorization: Bearer $(cat '
        f"{shlex.quote(str(settings.home / 'dev.key'))})\" -H 'content-type: application/json' -d '{body}'"
    )
    say(f"dashboard\n  {base}/ui\n")
    if refused:
        faults = refused.replace("\n", "\n  ")
        say(f"configuration REFUSED, without it what was applied before serves\n  {faults}\n")
    scheme = "https" if settings.tls_certificate else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    say(f"AIRI ready on {scheme}://{host}:{settings.port}")
