"""An upgrade under fire: the processes of an earlier commit are replaced one by one under calls, streams and workflows.

    python -m bench.upgrade [--from COMMIT] [--calm 2] [--callers 4]

The old release is taken out of git (the last tag, else the commit before this one) into a folder of its own; what is here
is the new one. Both are started as plain processes on one home, as systemd or Kubernetes would start them: a Redis, a
simulated engine, writer, control plane, two gateways that share a port, two workers. Then, role by role, the new process is
started beside the old one, which gets SIGTERM and drains (the control plane and the writer own a socket, so there the old
one goes first). What must be so at the end (exit code 0): each call, stream, run, key and configuration that was
*acknowledged* is there, and none failed in any way that a client is not told to try again (503, a refused connection).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from airi.settings import Settings
from airi.up.specs import redis_spec
from bench import FOLDER
from tests.support.live import ROOT, free_port, wait_until

ADMIN = "airi-upgrade-administrator-0123456789"
PLAIN = {"model": "fast", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 24}
CONFIG = """
apiVersion: airi/v1alpha1
kind: Pool
metadata: {{name: sim}}
engine: sim
simulated: true
replicas: [{{name: sim-1, url: "http://127.0.0.1:{sim}"}}]
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: fast}}
versions: [{{name: v1, targets: [{{pool: sim, model: sim/small}}]}}]
price: {{input: 0.1, output: 0.4}}
---
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {{name: acme}}
budgets: [{{name: all, usd: 1000, window: total}}]
limits: {{requests_per_minute: 100000, concurrent_calls: 1000}}
---
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {{name: three}}
steps:
  - {{id: one, call: llm, with: {{model: fast, prompt: "Say one.", max_tokens: 40}}}}
  - {{id: two, needs: [one], call: llm, with: {{model: fast, prompt: "Say two.", max_tokens: 40}}}}
  - {{id: three, needs: [two], call: llm, with: {{model: fast, prompt: "Say three.", max_tokens: 40}}}}
"""


class NoHistoryError(Exception):
    """There is no earlier commit here: a shallow clone, or no repository."""


def earlier_commit() -> str:
    """Return the commit of the last tag, else the one before this."""
    for words in (["describe", "--tags", "--abbrev=0"], ["rev-parse", "--verify", "-q", "HEAD~1"]):
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    raise NoHistoryError("no earlier commit is here (a shallow clone?); `git fetch --unshallow` brings them")


def take_out(commit: str, folder: Path) -> Path:
    """Unpack a commit's files."""
    done = subprocess.run(
        ["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise NoHistoryError(f"{commit} cannot be read: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@dataclass
class Part:
    """One process of one release."""

    name: str
    popen: subprocess.Popen[bytes]

    def end(self, patience_s: float = 45) -> int:
        """SIGTERM, and its exit status."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(patience_s)


@dataclass
class Fleet:
    """The processes on one home."""

    home: Path
    settings: Settings
    environment: dict[str, str]
    parts: dict[str, Part] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, code: Path, *words: str, **more: str) -> Part:
        """Start ``python -m WORDS`` of a release and wait until it is ready."""
        reading, writing = os.pipe()
        with (self.home / f"{name}.log").open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-P", "-m", *words], cwd=code, stdout=log, stderr=log, pass_fds=(writing,),
                env={**self.environment, **more, "PYTHONPATH": str(code), "AIRI_READY_FD": str(writing)},
            )  # fmt: skip
        os.close(writing)
        part = Part(name, popen)
        try:
            ready = select.select([reading], [], [], 60)[0]
            if not ready or b"READY" not in os.read(reading, 64):
                popen.kill()
                raise AssertionError(f"{name} of {code} did not become ready:\n{self.log(name)[-3_000:]}")
        finally:
            os.close(reading)
        return part

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")

    def role(self, name: str, code: Path) -> Part:
        """Start one of the roles by its name."""
        role, _, index = name.partition("-")
        words = {
            "gateway": "gateway.process",
            "control": "gateway.control",
            "writer": "observability.writer",
            "worker": "agents.worker",
        }
        return self.start(name, code, words[role], AIRI_PROCESS_INDEX=index or "0")

    def replace(self, name: str, code: Path, *, overlap: bool) -> None:
        """Put a process of another release into the place of the one that runs."""
        old = self.parts[name]
        if overlap:
            self.parts[name] = self.role(name, code)
            self.exits[name] = old.end()
        else:
            self.exits[name] = old.end()
            self.parts[name] = self.role(name, code)

    def stop(self) -> None:
        """End everything, Redis last."""
        for name in sorted(self.parts, key=lambda name: name.startswith("redis")):
            part = self.parts[name]
            if part.popen.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    part.end(40)
                part.popen.kill()
                part.popen.wait(10)


@contextlib.contextmanager
def fleet(folder: Path, old: Path, workers: int) -> Iterator[Fleet]:
    """Run the old release."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    sim = free_port()
    (home / "airi.yaml").write_text(CONFIG.format(sim=sim))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AIRI_") and not k.endswith("_API_KEY")}
    environment = {
        **clean, "AIRI_HOME": str(home), "AIRI_PORT": str(free_port()), "AIRI_ADMIN_KEY": ADMIN, "AIRI_WORKERS": "2",
        "AIRI_CONFIG": str(home / "airi.yaml"), "AIRI_SECRET_KEY": "upgrade" * 8,
    }  # fmt: skip
    settings = Settings.from_environment(environment)
    settings.sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Fleet(home, settings, environment)
    spec = redis_spec(settings)
    assert spec.prepare is not None
    assert spec.probe is not None
    spec.prepare()
    try:
        with (home / "redis.log").open("ab") as log:
            made.parts["redis"] = Part("redis", subprocess.Popen([*spec.command], stdout=log, stderr=log))
        wait_until(spec.probe, 20)
        made.parts["sim-1"] = made.start("sim-1", old, "routing.sim", "--port", str(sim), "--name", "sim-1")
        names = [
            "writer",
            "control",
            "gateway-0",
            "gateway-1",
            *(f"worker-{index}" for index in range(workers)),
        ]
        with ThreadPoolExecutor() as pool:
            for part in pool.map(partial(made.role, code=old), names):
                made.parts[part.name] = part
        yield made
    finally:
        made.stop()


@dataclass
class Fire:
    """What callers do all the while, and what was acknowledged to them."""

    base: str
    key: str
    counts: Counter[str] = field(default_factory=Counter)
    traces: set[str] = field(default_factory=set)
    runs: list[str] = field(default_factory=list)
    keys: list[tuple[str, str]] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    weight: float = 1
    failures: list[str] = field(default_factory=list)
    stopping: bool = False

    async def burn(self, callers: int) -> None:
        """Run all callers until :attr:`stopping`."""
        loops = [self._calls() for _ in range(callers)] + [self._streams() for _ in range(callers)]
        await asyncio.gather(*loops, self._workflows(), self._keys())

    def _client(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.base, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )

    async def _try(self, what: str, send: Callable[[], Any]) -> httpx.Response | None:
        """Send once; what tells the client to try again is counted, what does not is a failure."""
        try:
            answer: httpx.Response = await send()
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError) as error:
            # The address changed hands under a connection; nothing of an answer had come.
            self.counts[f"{what}_connection_again"] += 1
            self.counts[f"again_{type(error).__name__}"] += 1
            await asyncio.sleep(0.05)
            return None
        if answer.status_code == 503 and "retry-after" in answer.headers:
            self.counts[f"{what}_told_again"] += 1
            await asyncio.sleep(0.2)
            return None
        if answer.status_code >= 300:
            self.failures.append(f"{what}: {answer.status_code} {answer.text[:300]}")
            await asyncio.sleep(0.2)
            return None
        self.counts[what] += 1
        return answer

    async def _calls(self) -> None:
        async with self._client(self.key) as client:
            while not self.stopping:
                answer = await self._try("calls", partial(client.post, "/v1/chat/completions", json=PLAIN))
                if answer is not None:
                    self.traces.add(answer.headers["x-airi-trace-id"])
                await asyncio.sleep(0.05)

    async def _streams(self) -> None:
        body = {**PLAIN, "stream": True, "max_tokens": 120}
        async with self._client(self.key) as client:
            while not self.stopping:
                answer = await self._try("streams", partial(_whole_stream, client, body))
                if answer is not None:
                    self.traces.add(answer.headers["x-airi-trace-id"])
                    if not answer.text.endswith("data: [DONE]\n\n"):
                        self.failures.append(f"a stream ended with {answer.text[-300:]!r}")
                await asyncio.sleep(0.05)

    async def _workflows(self) -> None:
        async with self._client(self.key) as client:
            while not self.stopping:
                send = partial(client.post, "/v1/workflows/three/runs", json={"inputs": {}})
                answer = await self._try("runs", send)
                if answer is not None:
                    self.runs.append(str(answer.json()["id"]))
                await asyncio.sleep(0.5)

    async def _keys(self) -> None:
        async with self._client(ADMIN) as client:
            while not self.stopping:
                await self._one_change(client)
                await asyncio.sleep(0.5)

    async def _one_change(self, client: httpx.AsyncClient) -> None:
        """Issue a key, revoke an older one, write a resource."""
        answer = await self._try("keys", partial(client.post, "/admin/v1/keys", json={"tenant": "acme"}))
        if answer is not None:
            self.keys.append((str(answer.json()["id"]), str(answer.json()["key"])))
        if len(self.keys) > len(self.revoked) + 2:
            victim = self.keys[len(self.revoked)][0]
            if (
                await self._try("revocations", partial(client.post, f"/admin/v1/keys/{victim}/revoke"))
                is not None
            ):
                self.revoked.append(victim)
        tenant = {"kind": "Tenant", "metadata": {"name": "written"}, "weight": self.weight + 1}
        if (
            await self._try("writes", partial(client.put, "/admin/v1/tenants/written", json=tenant))
            is not None
        ):
            self.weight += 1


async def _whole_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        await answer.aread()
        return answer


def verify(made: Fleet, fire: Fire) -> dict[str, int]:
    """Return what was acknowledged and is not there."""
    lost: dict[str, int] = {}
    database = made.home / "airi.db"

    def settled() -> set[str]:
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
            return {trace for (trace,) in connection.execute("SELECT trace_id FROM ledger")}

    with contextlib.suppress(AssertionError):
        wait_until(lambda: fire.traces <= settled(), 30, 0.5)
    lost["calls_without_ledger_entry"] = len(fire.traces - settled())
    with httpx.Client(base_url=fire.base, timeout=30, trust_env=False) as client:

        def get(path: str, key: str) -> httpx.Response:
            return client.get(path, headers={"authorization": f"Bearer {key}"})

        def unfinished() -> list[str]:
            return [
                run
                for run in fire.runs
                if get(f"/v1/runs/{run}", fire.key).json().get("state") != "completed"
            ]

        with contextlib.suppress(AssertionError):
            wait_until(lambda: not unfinished(), 90, 1)
        lost["runs_not_completed"] = len(unfinished())
        gone = set(fire.revoked)
        wrong = [
            key_id
            for key_id, key in fire.keys
            if (get("/v1/models", key).status_code == 401) != (key_id in gone)
        ]
        lost["keys_not_as_acknowledged"] = len(wrong)
        weight = get("/admin/v1/tenants/written", ADMIN).json()["resource"]["weight"]
        lost["configuration_not_as_acknowledged"] = int(weight != fire.weight)
    return lost


def run(
    commit: str | None = None, *, calm_s: float = 2.0, callers: int = 4, workers: int = 2
) -> dict[str, Any]:
    """Upgrade and return what happened. Raises :class:`NoHistoryError` where there is nothing to upgrade from."""
    commit = commit or earlier_commit()
    with tempfile.TemporaryDirectory(prefix="airi-up-", dir=FOLDER) as name:
        old = take_out(commit, Path(name) / "old")
        with fleet(Path(name), old, workers) as made:
            return asyncio.run(_upgrade(made, commit, calm_s, callers))


async def _upgrade(made: Fleet, commit: str, calm_s: float, callers: int) -> dict[str, Any]:
    base = made.settings.effective_gateway_url
    fire = Fire(base, await asyncio.to_thread(_first_key, base))
    burning = asyncio.create_task(fire.burn(callers))
    began = time.monotonic()
    await asyncio.sleep(calm_s)
    for name, overlap in (
        ("writer", False), ("worker-0", True), ("gateway-0", True), ("control", False), ("worker-1", True), ("gateway-1", True),
    ):  # fmt: skip
        if name in made.parts:
            await asyncio.to_thread(made.replace, name, ROOT, overlap=overlap)
            await asyncio.sleep(calm_s)
    fire.stopping = True
    await burning
    took = time.monotonic() - began
    lost = await asyncio.to_thread(verify, made, fire)
    return {
        "from": commit, "took_s": round(took, 1), "lost": lost, "failures": len(fire.failures),
        "first_failures": fire.failures[:5], "acknowledged": dict(sorted(fire.counts.items())), "exits": made.exits,
    }  # fmt: skip


def _first_key(base: str) -> str:
    """Wait until the old release serves, and return a key of the tenant that everybody calls with."""
    headers = {"authorization": f"Bearer {ADMIN}"}

    def made() -> str:
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(
                f"{base}/admin/v1/keys", json={"tenant": "acme"}, headers=headers, trust_env=False
            )
            return str(answer.json()["key"]) if answer.status_code < 300 else ""
        return ""

    key: str = wait_until(made, 60, 0.3)
    call = {"authorization": f"Bearer {key}"}
    wait_until(
        lambda: httpx.post(f"{base}/v1/chat/completions", json=PLAIN, headers=call, timeout=30, trust_env=False).status_code == 200,
        60, 0.3,
    )  # fmt: skip
    return key


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="commit", help="the release to come from (a tag or a commit)")
    parser.add_argument("--calm", type=float, default=2, help="seconds between two replacements")
    parser.add_argument("--callers", type=int, default=4)
    arguments = parser.parse_args()
    try:
        result = run(arguments.commit, calm_s=arguments.calm, callers=arguments.callers)
    except NoHistoryError as error:
        print(f"nothing to upgrade from: {error}")
        return 0
    print(json.dumps(result))
    return int(bool(any(result["lost"].values()) or result["failures"] or any(result["exits"].values())))


if __name__ == "__main__":
    sys.exit(main())
