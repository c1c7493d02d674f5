"""The tree in two parts, as the compose file runs it, and the dashboard against the metrics of a live tree."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.guarded_redis import PASSWORD, GuardedRedis, guarded_redis, has_tls
from tests.support.live import ROOT, Live, wait_until

pytestmark = pytest.mark.integration
WORD = re.compile(r"\bairi_[a-z_]+")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


class Part(Live):
    """Some roles of a tree."""

    def __init__(self, home: Path, roles: str, line: str, **environment: str) -> None:
        super().__init__(home, **environment)
        self._roles = roles
        self._line = line

    def start(self, patience_s: float = 90.0) -> Part:
        with self.output.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "airi", "up", "--only", self._roles],
                cwd=ROOT, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: self._line in self.log(), patience_s)
        return self


@pytest.fixture(scope="module")
def guarded(short_tmp: Path, redis_server: str) -> Iterator[GuardedRedis]:
    """A Redis as others run it: with a user and a password, and over TLS where the binary can."""
    with guarded_redis(short_tmp / "guarded", tls=has_tls(redis_server)) as server:
        yield server


@pytest.fixture(scope="module")
def parts(short_tmp: Path, guarded: GuardedRedis) -> Iterator[Live]:
    """Gateway, control plane, writer and simulated models; the worker beside them, started by hand as `airi worker`."""
    home = short_tmp / "parts"
    shared = {"AIRI_REDIS_URL": guarded.url(), "AIRI_BROKER_URL": guarded.url(9)}
    with (
        Part(home, "writer,control,gateway,sim", "AIRI ready on ", **shared) as tree,
        (home / "worker.out").open("wb") as log,
    ):
        worker = subprocess.Popen(
            [sys.executable, "-m", "airi", "worker"], cwd=ROOT, env=tree.environment,
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield tree
        finally:
            worker.terminate()
            worker.wait(45)


def ping(tree: Live) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "airi", "worker", "--ping", "--output", "json"],
        cwd=ROOT, env=tree.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_parts_serve_together_and_the_worker_answers_its_health_check(parts: Live) -> None:
    with parts.client() as client:
        answer = client.post(
            "/v1/chat/completions",
            json={"model": "sim/small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
        )
    assert answer.status_code == 200, answer.text
    found = wait_until(lambda: (done := ping(parts)).returncode == 0 and done, 60, 1)
    assert len(json.loads(found.stdout)["workers"]) == 1
    assert "stopping" not in parts.log()


def test_the_health_check_says_no_where_no_worker_is(parts: Live, guarded: GuardedRedis) -> None:
    nobody = guarded.url(10)
    parts.environment, kept = {**parts.environment, "AIRI_BROKER_URL": nobody}, parts.environment
    try:
        assert ping(parts).returncode == 1
    finally:
        parts.environment = kept


def test_money_is_counted_in_a_redis_with_a_password_which_nothing_writes_down(parts: Live) -> None:
    verified = subprocess.run(
        [sys.executable, "-m", "airi", "ledger", "verify"],
        cwd=ROOT, env=parts.environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    secrets = [PASSWORD.encode(), quote(PASSWORD, safe="").encode()]
    files = [path for path in parts.home.rglob("*") if path.is_file()]
    assert {"up.log", "worker.out", "airi.db"} <= {path.name for path in files}
    assert not [path for path in files for secret in secrets if secret in path.read_bytes()]
    told = parts.log() + (parts.home / "worker.out").read_text()
    assert "NOPERM" not in told, "the user has the rights that docs/operations.md names"


def test_every_metric_of_the_dashboard_is_exposed(parts: Live) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/airi.json").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    texts += [
        item["query"]["query"] for item in dashboard["templating"]["list"] if isinstance(item["query"], dict)
    ]
    named = {name for text in texts for name in WORD.findall(text)}
    assert len(named) > 15

    def exposed() -> set[str]:
        with parts.admin() as admin:
            page = admin.get("/metrics").text
        families = text_string_to_metric_families(page)
        return {name for family in families for name in (family.name, f"{family.name}_total")}

    def missing() -> set[str]:
        there = exposed()
        return {name for name in named if name not in there and _SUFFIX.sub("", name) not in there}

    wait_until(lambda: not missing(), 60, 0.5)


def test_panels_do_not_overlap_and_have_a_source() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/airi.json").read_text())
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"], panel["title"]
