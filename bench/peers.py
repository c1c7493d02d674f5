"""Other gateways as processes of ours: how each is installed, started and asked, and what it does with a call.

``scripts/bench-peers`` installs them; one that is not there is named with the reason, never with a figure of others.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from bench.calls import GATEWAY_CORE, cpu_s
from tests.support.live import free_port, wait_until

_START_S = 180.0
KEY = "sk-bench"


@dataclass(frozen=True)
class Peer:
    """A gateway of others. ``{…}`` in a command is filled in by :func:`running`."""

    name: str
    package: str
    """The distribution, whose version is printed."""
    command: tuple[str, ...]
    does: str
    """What it does with each call as it is configured here."""
    environment: dict[str, str] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    starts_pinned: bool = True
    """Runtimes that count the cores at their start are pinned first; an interpreter's imports may take both."""


_ROUTER = ("--host", "127.0.0.1", "--port", "{port}", "--worker-urls", "http://127.0.0.1:{upstream}", "--prometheus-port", "{spare}", "--log-level", "error")  # fmt: skip
PEERS = (
    Peer(
        "sglang-router", "sglang-router", ("{home}/bin/sglang-router", "launch", *_ROUTER),
        "replica by its default `cache_aware` policy (a tree of the prompts), retries, circuit breaker, metrics; no keys, limits, "
        "policies, prices or records",
    ),
    Peer(
        "vllm-router", "vllm-router", ("{home}/bin/vllm-router", *_ROUTER),
        "the same as sglang-router",
    ),
    Peer(
        "Portkey", "@portkey-ai/gateway",
        ("node", "{home}/node_modules/@portkey-ai/gateway/build/start-server.js", "--headless", "--port={port}"),
        "provider chosen by the caller's headers, body read and mapped to the provider's, headers of its own; no keys of its "
        "own, limits, prices or records in the open-source gateway",
        {"NODE_ENV": "production"},
        ("x-portkey-provider: openai", "x-portkey-custom-host: http://127.0.0.1:{upstream}/v1"),
    ),
    Peer(
        "LiteLLM proxy", "litellm",
        ("{home}/bin/litellm", "--config", "{config}", "--host", "127.0.0.1", "--port", "{port}", "--telemetry", "False"),
        "its master key (without a database: no virtual keys, budgets, limits or spend log), its router, body read and mapped, cost; "
        "no policies",
        # Its limit of equal chunks would end the mock's streams; the map of prices is its own file.
        {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "REPEATED_STREAMING_CHUNK_LIMIT": "1000000"},
        starts_pinned=False,
    ),
)  # fmt: skip


def home(peer: Peer, cache: Path) -> Path:
    """Return the folder of its own environment: ``litellm``, ``portkey`` …"""
    return cache / peer.name.split()[0].lower()


def version(peer: Peer, cache: Path) -> str:
    """Return the installed version; raise :class:`FileNotFoundError` with the reason why there is none."""
    folder = home(peer, cache)
    failed = folder / "failed"
    if failed.exists():
        raise FileNotFoundError(failed.read_text().strip())
    if peer.package.startswith("@"):
        manifest = folder / "node_modules" / peer.package / "package.json"
        return str(json.loads(manifest.read_text())["version"])
    stem = peer.package.replace("-", "_")
    found = [path.name for path in folder.glob(f"lib/python*/site-packages/{stem}-*.dist-info")]
    if not found:
        raise FileNotFoundError(f"not installed in {folder.name}/")
    return found[0].removeprefix(f"{stem}-").removesuffix(".dist-info")


@dataclass
class Running:
    """A gateway that answers, whosever it is."""

    name: str
    port: int
    key: str
    processes: list[psutil.Process]
    headers: tuple[str, ...] = ()

    def cpu_s(self) -> float:
        """Return user and system time of its processes so far."""
        return float(cpu_s(self.processes))

    def megabytes(self) -> float:
        """Return the resident memory of its processes."""
        return float(sum(process.memory_info().rss for process in self.processes)) / 1e6


@contextlib.contextmanager
def running(peer: Peer, cache: Path, upstream: int, folder: Path) -> Iterator[Running]:
    """Start a peer on the gateway's core before the mock upstream; end its processes at the end."""
    port, log = free_port(), folder / f"{home(peer, cache).name}.log"
    config = folder / "litellm.json"
    config.write_text(json.dumps(_litellm_config(upstream)))
    fill = {
        "home": home(peer, cache),
        "port": port,
        "spare": free_port(),
        "upstream": upstream,
        "config": config,
    }
    command = [part.format_map(fill) for part in peer.command]
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **peer.environment},
            preexec_fn=(lambda: os.sched_setaffinity(0, {GATEWAY_CORE})) if peer.starts_pinned else None,  # noqa: PLW1509
        )  # fmt: skip
    try:
        headers = tuple(header.format_map(fill) for header in peer.headers)
        _wait_until_it_answers(popen, port, headers, log)
        started = psutil.Process(popen.pid)
        processes = [started, *started.children(recursive=True)]
        for process in processes:
            for thread in process.threads():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, {GATEWAY_CORE})
        yield Running(peer.name, port, KEY, processes, headers)
    finally:
        _end(popen)


def _litellm_config(upstream: int) -> dict[str, object]:
    """JSON is YAML."""
    target = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    return {
        "model_list": [{"model_name": "plain", "litellm_params": target}],
        "general_settings": {"master_key": KEY},
    }


def _wait_until_it_answers(
    popen: subprocess.Popen[bytes], port: int, headers: tuple[str, ...], log: Path
) -> None:
    """A whole call must come through: listening is not serving."""
    extra = dict(header.split(": ", 1) for header in headers)
    body = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}]}

    def answers() -> bool:
        if popen.poll() is not None:
            raise ChildProcessError(
                f"ended with {popen.returncode}: {log.read_text(errors='replace')[-500:]}"
            )
        with contextlib.suppress(httpx.TransportError):
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            answer = httpx.post(url, json=body, headers={"authorization": f"Bearer {KEY}", **extra}, timeout=30, trust_env=False)  # fmt: skip
            return answer.status_code == 200
        return False

    try:
        wait_until(answers, _START_S, 0.25)
    except AssertionError:
        raise TimeoutError(f"it answered no call within {_START_S:.0f} s") from None


def _end(popen: subprocess.Popen[bytes]) -> None:
    """End it and what it has started; what does not leave is killed."""
    children = []
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(popen.pid).children(recursive=True)
    popen.terminate()
    try:
        popen.wait(10)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait(10)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
