"""Client libraries against a live AIRI on simulated models, each in a process and an environment of its own.

The scripts in ``clients/`` hold the checks; a test here is one check of one library over one of the two OpenAI APIs.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import Live

_CLIENTS = Path(__file__).parent / "clients"
_PATIENCE_S = 200
_BOTH = ("chat", "responses")
_BOTH_ROUTES = {"/v1/chat/completions", "/v1/responses"}
_COMMON = ("plain", "streamed", "tools", "tools_streamed", "structured", "wrong_key", "unknown_model")
LIBRARIES = {
    "openai-agents": [f"{check}[{api}]" for api in _BOTH for check in (*_COMMON, "handed_on", "continued")],
    "langchain": [
        *(f"{check}[{api}]" for api in _BOTH for check in (*_COMMON, "agent", "streamed_async")),
        "embeddings",
    ],
    "pydantic-ai": [f"{check}[{api}]" for api in _BOTH for check in (*_COMMON, "continued")],
}
pytestmark = [pytest.mark.integration, pytest.mark.timeout(_PATIENCE_S + 60)]


class Driver:
    """Runs each library once against one tree and keeps what became of its checks."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._results: dict[str, dict[str, str | None]] = {}
        self._seen: set[str] = set()
        self.routes: dict[str, set[str]] = {}

    def results(self, library: str) -> dict[str, str | None]:
        """From the name of a check to what was wrong with it."""
        if library not in self._results:
            self._new_traces()
            self._results[library] = self._run(library)
            self.routes[library] = self._routes_taken()
        return self._results[library]

    def _run(self, library: str) -> dict[str, str | None]:
        python = Path(os.environ["AIRI_INTEGRATIONS"]) / library / "bin" / "python"
        done = subprocess.run(
            [python, _CLIENTS / f"drive_{library.replace('-', '_')}.py"],
            # Nothing of this environment, and no way to anything but this machine.
            env={
                "AIRI_BASE_URL": self._live.base,
                "AIRI_KEY": self._live.key,
                "HTTP_PROXY": "http://127.0.0.1:9",
                "HTTPS_PROXY": "http://127.0.0.1:9",
                "NO_PROXY": "127.0.0.1",
                "PATH": os.environ["PATH"],
            },
            cwd=python.parent,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
        assert found, f"{library} did not start:\n{done.stderr[-4_000:]}"
        return {item["check"]: item["error"] for item in found}

    def _new_traces(self) -> list[str]:
        """Return the traces that were not there when this was asked last."""
        with self._live.admin() as admin:
            listed = admin.get("/admin/v1/traces", params={"limit": 500}).json()["data"]
        found = {call["trace_id"] for call in listed} - self._seen
        self._seen |= found
        return sorted(found)

    def _routes_taken(self) -> set[str]:
        """Return the routes of the traces since the last look, once the record has caught up (or after 10 s)."""
        taken: set[str] = set()
        deadline = time.monotonic() + 10
        with self._live.admin() as admin:
            while not taken >= _BOTH_ROUTES and time.monotonic() < deadline:
                for trace_id in self._new_traces():
                    trace = admin.get(f"/admin/v1/traces/{trace_id}").json()
                    taken |= {call["route"] for call in trace["calls"]}
                time.sleep(0.1)
        return taken


@pytest.fixture(scope="module")
def driver(short_tmp: Path) -> Iterator[Driver]:
    with Live(short_tmp / "live", AIRI_SIM_SPEED="10") as tree:
        yield Driver(tree)


@pytest.mark.parametrize(
    ("library", "check"), [(library, check) for library, checks in LIBRARIES.items() for check in checks]
)
def test_library(driver: Driver, library: str, check: str) -> None:
    results = driver.results(library)
    assert check in results, f"{check} did not run; these did: {sorted(results)}"
    assert results[check] is None, results[check]


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_check_goes_unlooked_at(driver: Driver, library: str) -> None:
    assert set(driver.results(library)) == set(LIBRARIES[library])


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_apis_were_called(driver: Driver, library: str) -> None:
    """A library that fell back to its other API in silence would pass every check."""
    driver.results(library)
    assert driver.routes[library] >= _BOTH_ROUTES
