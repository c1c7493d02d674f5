"""The configuration at scale: 100,000 keys, 1,000 tenants, 1,000 policies on a live tree under a steady load of calls.

    python -m bench.config_scale [--keys 100000] [--tenants 1000] [--policies 1000] [--rounds 4] [--seconds 6]

Rounds of quiet and of change alternate. While there is change, somebody writes a policy and a tenant every second or so,
issues a key and calls with it at once, and revokes the one before. Measured: from the answer to a write until the gateway
serves it, from the answer that holds a new key until a call with it is served, the calls' latencies, the memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from airi.database import open_engine
from airi.keyring import KeyRing
from airi.keys import KeyLog, NewKey
from airi.redis import connect
from airi.settings import Settings
from bench.calls import OTHER_CORE, body, child
from bench.tree import pid
from tests.support.live import ROOT, Live, free_port, wait_until

API = "airi/v1alpha1"
BATCH = 5_000
LOAD_KEYS = 2_000
WIDE = 10
"""Policies that hold for every tenant; the others are of one tenant each."""


def tenant(number: int, weight: float = 1) -> dict[str, Any]:
    """Return one organisation with two teams, limits and a budget."""
    limits = {
        "requests_per_minute": 1_000_000,
        "tokens_per_minute": 2_000_000_000,
        "concurrent_calls": 10_000,
    }
    return {
        "apiVersion": API, "kind": "Tenant", "metadata": {"name": f"tenant-{number}"}, "limits": limits,
        "weight": weight, "budgets": [{"name": "month", "usd": 100_000}],
        "teams": [{"name": "red", "limits": limits}, {"name": "blue"}],
    }  # fmt: skip


def policy(number: int, limit: int = 100_000) -> dict[str, Any]:
    """Return one policy; no two conditions are the same text."""
    scope: dict[str, Any] = {} if number < WIDE else {"tenants": [f"tenant-{number}"]}
    return {
        "apiVersion": API, "kind": "Policy", "metadata": {"name": f"policy-{number}"}, "scope": scope, "effect": "deny",
        "when": f'call.max_tokens > {limit + number} && team != "team-{number}"',
    }  # fmt: skip


def base(upstream: int) -> str:
    """Return what the file of the tree holds: the mock and one model on it."""
    documents = [
        {"kind": "Provider", "metadata": {"name": "mock"}, "base_url": f"http://127.0.0.1:{upstream}/v1"},
        {"kind": "Model", "metadata": {"name": "plain"}, "price": {"input": 0.1, "output": 0.4},
         "versions": [{"name": "v1", "targets": [{"provider": "mock", "model": "mock"}]}]},
    ]  # fmt: skip
    return "\n---\n".join(json.dumps({"apiVersion": API, **document}) for document in documents)


@dataclass
class Scale:
    """A live tree and what was measured on it. Times in milliseconds."""

    live: Live
    admin: httpx.Client
    folder: Path
    samples: dict[str, list[float]] = field(default_factory=dict)
    writes: int = 0
    last_key: str = ""
    first_error: str = ""

    def add(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def settings(self) -> Settings:
        return Settings.from_environment(self.live.environment)

    def memory_mb(self, role: str) -> float:
        return round(float(psutil.Process(pid(self.live, role)).memory_info().rss) / 1e6, 1)

    def digest(self) -> str:
        return str(self.admin.get("/readyz").json()["snapshot"])

    def write(self, name: str, resources: list[dict[str, Any]]) -> None:
        """Apply resources as one version and wait until the gateway serves it."""
        began = time.perf_counter()
        answer = self.admin.post("/admin/v1/apply", json={"resources": resources}, timeout=120)
        answer.raise_for_status()
        acknowledged = time.perf_counter()
        digest = answer.json()["digest"]
        wait_until(lambda: self.digest() == digest, 60, 0.02)
        self.add(f"{name}_written", (acknowledged - began) * 1_000)
        self.add(f"{name}_served", (time.perf_counter() - acknowledged) * 1_000)
        self.writes += 1

    def new_key(self) -> None:
        """Issue a key, call with it until it is served, then revoke the one before."""
        made = self.admin.post("/admin/v1/keys", json={"tenant": "tenant-7", "team": "red"})
        made.raise_for_status()
        began = time.perf_counter()
        headers = {"authorization": f"Bearer {made.json()['key']}", "content-type": "application/json"}
        refused = 0
        while (
            status := self.admin.post("/v1/chat/completions", content=body(228), headers=headers).status_code
        ) != 200:
            assert status == 401, status
            refused += 1
            assert time.perf_counter() - began < 20
        self.add("new_key_usable", (time.perf_counter() - began) * 1_000)
        self.add("new_key_refused", refused)
        if self.last_key:
            self.admin.post(f"/admin/v1/keys/{self.last_key}/revoke").raise_for_status()
        self.last_key = made.json()["id"]

    def calls(self, seconds: float, rate: float) -> subprocess.Popen[bytes]:
        """Start the load."""
        return subprocess.Popen(
            [sys.executable, "-m", "bench.load", "open", str(self.live.port), "--seconds", str(seconds), "--rate", str(rate),
             "--connections", "32", "--body", str(self.folder / "body"), "--keys", str(self.folder / "keys")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self, name: str, load: subprocess.Popen[bytes]) -> None:
        out, error = load.communicate(timeout=120)
        assert load.returncode == 0, error.decode()[-2_000:]
        result = json.loads(out)
        self.add(f"{name}_errors", result["errors"])
        self.first_error = self.first_error or result["first_error"]
        self.add(f"{name}_calls", result["calls"])
        self.add(f"{name}_p50", result["p50_us"] / 1_000)
        self.add(f"{name}_p99", result["p99_us"] / 1_000)


def issue_keys(scale: Scale, count: int, tenants: int) -> float:
    """Issue keys in batches, as an import would; keep some for the load. Returns seconds."""
    settings = scale.settings()
    engine = open_engine(settings.effective_database_url, full_sync=False)
    log = KeyLog(engine, connect(settings.effective_redis_url), KeyRing.open_for(settings))
    kept: list[str] = []
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        numbers = range(start, min(start + BATCH, count))
        wanted = [NewKey(tenant=f"tenant-{number % tenants}", team="red") for number in numbers]
        made = log.create_many(wanted, actor="bench")
        if len(kept) < LOAD_KEYS:
            kept += [secret.reveal() for _, secret in made[: LOAD_KEYS - len(kept)]]
    (scale.folder / "keys").write_text("\n".join(kept))
    (scale.folder / "body").write_bytes(body(228))
    last = kept[-1]
    wait_until(lambda: scale.live.client(last).get("/v1/models").status_code == 200, 60)
    return time.perf_counter() - began


def changes(scale: Scale, until: float, tenants: int, policies: int) -> None:
    """Change policies, tenants and keys in turn until then."""
    while time.perf_counter() < until:
        number = scale.writes
        scale.write("policy", [policy(number * 7 % policies, 200_000 + number)])
        scale.new_key()
        scale.write("tenant", [tenant(number * 11 % tenants, 2 + number)])
        time.sleep(0.5)


def measure(scale: Scale, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fill the tree, then alternate quiet and change."""
    memory = {
        "gateway_before_mb": scale.memory_mb("gateway"),
        "control_before_mb": scale.memory_mb("control"),
    }
    tenants, policies = arguments.tenants, arguments.policies
    scale.write(
        "everything",
        [tenant(number) for number in range(tenants)] + [policy(number) for number in range(policies)],
    )
    took = issue_keys(scale, arguments.keys, tenants)
    scale.finish("warm", scale.calls(arguments.seconds, arguments.rate))
    for _ in range(arguments.rounds):
        scale.finish("quiet", scale.calls(arguments.seconds, arguments.rate))
        load = scale.calls(arguments.seconds, arguments.rate)
        changes(scale, time.perf_counter() + arguments.seconds, tenants, policies)
        scale.finish("changing", load)
    load = scale.calls(arguments.seconds, arguments.rate)
    time.sleep(0.5)
    scale.write("every_policy", [policy(number, 300_000) for number in range(policies)])
    scale.finish("every_policy", load)
    memory |= {"gateway_after_mb": scale.memory_mb("gateway"), "control_after_mb": scale.memory_mb("control")}
    return {
        "figures": figures(scale.samples),
        **memory,
        "keys_issued_s": round(took, 1),
        "writes": scale.writes,
    }


def figures(samples: dict[str, list[float]]) -> dict[str, float]:
    """Return medians, and the worst of what has a bound."""
    found = {name: round(statistics.median(values), 2) for name, values in samples.items()}
    for name in ("policy_served", "tenant_served", "new_key_usable"):
        found[f"{name}_worst"] = round(max(samples[name]), 2)
    ratios = [
        changing / quiet
        for changing, quiet in zip(samples["changing_p99"], samples["quiet_p99"], strict=True)
    ]
    found["p99_while_changing_ratio"] = round(statistics.median(ratios), 3)
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start everything, measure, stop everything."""
    upstream = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="airi-scale-") as name,
        child("-m", "bench.upstream", str(upstream), core=OTHER_CORE),
        Live(Path(name) / "home", base(upstream)) as live,
        contextlib.closing(live.admin()) as admin,
    ):
        result = measure(Scale(live, admin, Path(name)), arguments)
    scale = {
        key: getattr(arguments, key) for key in ("keys", "tenants", "policies", "rate", "seconds", "rounds")
    }
    return {
        **result,
        **scale,
        "machine": f"{psutil.cpu_count()} cores",
        "load_average": psutil.getloadavg()[0],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rate", type=float, default=200)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
