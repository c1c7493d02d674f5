"""``python -m routing.sim --port 4101 --name sim-0``: one simulated replica, one process."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys

from airi.http.server import ServerLimits, serve
from airi.up.ready import notify_ready
from routing.sim.app import Replica

_DRAIN_SECONDS = 25.0
MODELS = "sim/small,sim/large,sim/embed"


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, drain, return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m routing.sim",
        description="A simulated inference engine in the OpenAI dialect. It says that it is simulated.",
        epilog="Example: python -m routing.sim --port 4101 --name sim-0   (AIRI_SIM_SPEED=10 makes it ten times as fast)",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free port and prints it")
    parser.add_argument("--name", default="sim")
    parser.add_argument(
        "--models", default=MODELS, help=f"comma list (default {MODELS}); names with 'embed' embed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kv-blocks", type=int, default=0, help="KV memory in blocks of 16 tokens (default: the model's)"
    )
    options = parser.parse_args(arguments)
    try:
        speed = float(os.environ.get("AIRI_SIM_SPEED") or 1)
        if not 0 < speed <= 1_000_000:
            raise ValueError
    except ValueError:
        parser.error("AIRI_SIM_SPEED must be a number above 0, such as 10")
    run = _serve(options, speed)
    try:
        import uvloop
    except ImportError:  # not on Windows
        asyncio.run(run)
    else:
        uvloop.run(run)
    return 0


async def _serve(options: argparse.Namespace, speed: float) -> None:
    models = [name.strip() for name in options.models.split(",") if name.strip()]
    replica = Replica(options.name, models, speed=speed, seed=options.seed, kv_blocks=options.kv_blocks)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await serve(
        replica.handle, host=options.host, port=options.port, limits=ServerLimits(max_connections=4096)
    )
    if not options.port:
        print(server.port, flush=True)  # noqa: T201  # the answer to --port 0
    notify_ready()
    await stop.wait()
    server.close_listeners()
    await server.drain(_DRAIN_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
