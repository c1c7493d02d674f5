"""Which processes make up AIRI on one machine, in what order they start and end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from airi.embedded.redis import answers, find_redis, prepare_redis, redis_command
from airi.settings import Settings

RUNNING_CALLS_S = 32.0
"""How long calls and steps that run may take to end: the public 30 s and a moment to say goodbye."""
DRAIN_ORDER = ("worker", "gateway", "control", "writer", "sim", "redis")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to supervise.

    ``name`` is shown; ``role`` is its place in :data:`DRAIN_ORDER`; ``after`` names what must be ready before it
    starts. It is ready when ``probe`` says so, or, without one, when it has written ``READY`` to its pipe.
    """

    name: str
    role: str
    command: Sequence[str]
    after: tuple[str, ...] = ()
    probe: Callable[[], bool] | None = None
    drain_s: float = 10.0
    environment: dict[str, str] = field(default_factory=dict)
    awaited: bool = True
    """Whether the tree is ready only when this process is; one that is not comes up a moment later."""
    prepare: Callable[[], None] | None = None
    """Runs before every start of the process."""
    log: Path | None = None
    """The file of a process whose words are not AIRI's JSON lines: they go there even when logs go to standard error."""


def module(name: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of AIRI with this Python (``-P``: nothing shadows it)."""
    return [sys.executable, "-P", "-m", "airi.up.launch", name, *arguments]


def redis_spec(settings: Settings) -> ProcessSpec:
    """Return the embedded Redis; raise ``EmbeddedPartError`` when this machine has none."""
    socket, directory = settings.redis_socket, settings.home / "redis"
    return ProcessSpec(
        "redis",
        "redis",
        redis_command(find_redis(), socket_path=socket, directory=directory),
        probe=partial(answers, socket),
        prepare=partial(prepare_redis, socket, directory),
        log=settings.home / "logs" / "redis.log",
    )


def tree(
    settings: Settings, sim_ports: Sequence[int], only: Collection[str] = DRAIN_ORDER
) -> list[ProcessSpec]:
    """Return the processes of the roles in ``only`` for these settings. What has an address (AIRI_REDIS_URL …) is not started."""
    specs = [spec for spec in _everything(settings, sim_ports) if spec.role in only]
    there = {spec.name for spec in specs}
    return [replace(spec, after=tuple(name for name in spec.after if name in there)) for spec in specs]


def _everything(settings: Settings, sim_ports: Sequence[int]) -> list[ProcessSpec]:
    specs: list[ProcessSpec] = []
    after: tuple[str, ...] = ()
    if settings.redis_url is None:
        specs.append(redis_spec(settings))
        after = ("redis",)
    specs.append(ProcessSpec("writer", "writer", module("observability.writer"), after=after))
    specs.append(ProcessSpec("control", "control", module("gateway.control"), after=after))
    for index in range(settings.workers):
        name = "gateway" if settings.workers == 1 else f"gateway-{index}"
        specs.append(
            ProcessSpec(
                name,
                "gateway",
                module("gateway.process"),
                after=after,
                drain_s=RUNNING_CALLS_S,
                environment={"AIRI_PROCESS_INDEX": str(index)},
            )
        )
    # Runs wait in the database, so the door need not wait for the worker, nor share the start's processors with it.
    specs.append(
        ProcessSpec(
            "worker",
            "worker",
            module("agents.worker"),
            after=(*after, "control"),
            drain_s=RUNNING_CALLS_S,
            awaited=False,
        )
    )
    for number, port in enumerate(sim_ports, 1):
        command = module("routing.sim", "--port", str(port), "--name", f"sim-{number}")
        specs.append(ProcessSpec(f"sim-{number}", "sim", command, drain_s=3.0))
    return specs


def package_root() -> Path:
    """Return the folder that holds AIRI's packages."""
    return Path(__file__).resolve().parent.parent.parent
