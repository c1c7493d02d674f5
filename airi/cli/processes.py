"""``airi up``, ``airi gateway``, ``airi worker``: starting processes."""

from __future__ import annotations

import argparse
import os
import sys

from airi.cli.output import show
from airi.cli.runner import Parser, command
from airi.settings import Settings


def _up(arguments: argparse.Namespace) -> int:
    import asyncio

    from airi.up.main import up

    to_files = arguments.logs == "files" or (arguments.logs == "auto" and sys.stderr.isatty())
    return asyncio.run(up(Settings.from_environment(), logs_to_files=to_files, only=arguments.only))


def _roles(text: str) -> list[str]:
    from airi.up.specs import DRAIN_ORDER

    roles = [role.strip() for role in text.split(",")]
    for role in roles:
        if role not in DRAIN_ORDER:
            raise argparse.ArgumentTypeError(f"{role!r} is none of {', '.join(DRAIN_ORDER)}")
    return roles


def _up_parser() -> Parser:
    parser = command(
        "up",
        "Start everything on this machine as one tree of processes: Redis, control plane, gateway, worker, record "
        "writer and simulated models. State lives in AIRI_HOME (./.airi); Ctrl-C ends it in order.",
        "AIRI_PORT=4100 airi up",
        _up,
    )
    parser.add_argument(
        "--logs",
        choices=("auto", "files", "stderr"),
        default="auto",
        help="JSON logs to AIRI_HOME/logs or to standard error (auto: files when that is a terminal)",
    )
    parser.add_argument(
        "--only", type=_roles, default="worker,gateway,control,writer,sim,redis", metavar="ROLE,…",
        help="start these roles alone; the others run elsewhere (AIRI_REDIS_URL and AIRI_DATABASE_URL say where)",
    )  # fmt: skip
    return parser


def _become(module: str) -> int:
    """Become the process, so that signals and exit status are its own."""
    from airi.up.specs import module as command_line

    Settings.from_environment()  # a setting that cannot be understood is said here, in words
    words = command_line(module)
    from airi.up.main import python_path

    os.environ["PYTHONPATH"] = python_path()
    os.execv(words[0], words)  # noqa: S606  # no shell is the point


def _gateway_parser() -> Parser:
    return command(
        "gateway",
        "Start one gateway process. It needs AIRI_REDIS_URL, AIRI_DATABASE_URL and a control plane on its home, "
        "or a tree that `airi up` has started on the same AIRI_HOME.",
        "AIRI_PORT=4001 airi gateway",
        lambda _arguments: _become("gateway.process"),
    )


def _worker(arguments: argparse.Namespace) -> int:
    if not arguments.ping:
        return _become("agents.worker")
    from agents.celery_app import ping
    from agents.tuning import machine

    names = [name for name in ping(Settings.from_environment().effective_broker_url) if machine() in name]
    show(arguments, {"workers": names}, lambda: "\n".join(names) or "no worker of this machine answers")
    return int(not names)


def _worker_parser() -> Parser:
    parser = command(
        "worker",
        "Start one more worker that executes workflow steps; AIRI_GATEWAY_URL says where the gateway is, "
        "AIRI_BROKER_URL and AIRI_DATABASE_URL where the work is.",
        "AIRI_GATEWAY_URL=http://10.0.0.5:4000 airi worker",
        _worker,
    )
    parser.add_argument(
        "--ping",
        action="store_true",
        help="ask the broker whether a worker of this machine answers (0: yes, 1: no)",
    )
    return parser


PARSERS = {"up": _up_parser, "gateway": _gateway_parser, "worker": _worker_parser}
