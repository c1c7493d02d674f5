"""vLLM as a child process: started, asked for its metrics, killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from routing.engine_metrics import EngineLoad, parse_vllm
from tests.engines.tiny_model import CONTEXT_TOKENS, write_model
from tests.support.live import free_port, wait_until

_START_S = 240
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip
GENERATES = (
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    # Random weights would fill a grammar's free white space to the end of the context.
    "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
)  # fmt: skip
EMBEDS = ("--runner", "pooling", "--convert", "embed")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Engine:
    """One ``vllm serve`` on loopback; it keeps its port over restarts and dies with the tests."""

    def __init__(self, name: str, venv: Path, model: Path, options: tuple[str, ...], log: Path) -> None:
        self.name = name
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self._command = [
            str(venv / "bin" / "vllm"), "serve", str(model), "--load-format", "dummy", "--dtype", "float32",
            "--max-model-len", str(CONTEXT_TOKENS), "--enforce-eager", "--host", "127.0.0.1", "--port", str(self.port),
            "--served-model-name", "tiny", *options,
        ]  # fmt: skip
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it has been started and not been killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start it; :meth:`wait_ready` waits until it serves."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env={**os.environ, **_ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509  # one call into C
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Wait for ``/health``; fail with the end of the log when the engine is gone."""
        assert self._process is not None
        process = self._process

        def ready() -> bool:
            assert process.poll() is None, f"vLLM ended:\n{self._log.read_text()[-4000:]}"
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{self.base}/health", trust_env=False).status_code == 200
            return False

        wait_until(ready, _START_S, 0.5)

    def kill(self) -> None:
        """SIGKILL to every process of the engine at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
            self._process = None

    def metrics(self) -> bytes:
        """Return its Prometheus text."""
        return httpx.get(f"{self.base}/metrics", trust_env=False, timeout=20).content

    def load(self) -> EngineLoad:
        """Return its load as AIRI's scraper reads it."""
        load = parse_vllm(self.metrics())
        assert load is not None
        return load

    def counter(self, name: str) -> float:
        """Return the sum of a counter, read apart from AIRI's own reader."""
        pattern = rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$"
        found = re.findall(pattern, self.metrics().decode(), re.MULTILINE)
        assert found, f"vLLM has no metric {name}"
        return sum(map(float, found))

    def generated(self) -> float:
        """Return how many tokens it has generated since it started."""
        return self.counter("vllm:generation_tokens_total")


@dataclass
class Engines:
    """``a`` and ``b`` generate, ``c`` embeds."""

    a: Engine
    b: Engine
    c: Engine

    def named(self, replica: str) -> Engine:
        """Return the engine behind ``pool/replica``."""
        return {"a": self.a, "b": self.b, "c": self.c}[replica.rpartition("/")[2]]


@contextlib.contextmanager
def start_together(venv: Path, folder: Path) -> Iterator[Engines]:
    """Make the model, start all engines at once, wait for them; kill them at the end."""
    model = write_model(folder / "tiny")
    engines = Engines(
        *(
            Engine(name, venv, model, options, folder / f"vllm-{name}.log")
            for name, options in (("a", GENERATES), ("b", GENERATES), ("c", EMBEDS))
        )
    )
    every = (engines.a, engines.b, engines.c)
    try:
        for engine in every:
            engine.start()
        for engine in every:
            engine.wait_ready()
        yield engines
    finally:
        for engine in every:
            engine.kill()
