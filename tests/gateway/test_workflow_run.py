"""``airi workflow run FILE`` and ``airi apply`` against a real control plane: what they put there, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from airi.cli import configuration, main, workflows
from airi.cli.client import Client
from airi.settings import Settings
from gateway.control.app import create

ADMIN = "the-admin-key"
FLOW = """\
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: nap, description: one}
steps:
  - {id: one, wait: {duration: 1s}}
"""


@pytest.fixture
def control(home: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """The control plane, as the commands find it."""
    settings = Settings.from_environment(
        {"AIRI_HOME": str(home), "AIRI_ADMIN_KEY": ADMIN, "AIRI_REDIS_URL": redis_url}
    )
    app = create(settings)

    def client(key: str) -> Client:
        made = Client("http://airi.test", key, local=False)
        http = TestClient(app, base_url="http://airi.test", headers={"authorization": f"Bearer {key}"})
        monkeypatch.setattr(made, "_http", http)
        return made

    admin = client(ADMIN)
    admin.call("POST", "/admin/v1/tenants", {"metadata": {"name": "acme"}, "teams": [{"name": "core"}]})
    key = admin.call("POST", "/admin/v1/keys", {"tenant": "acme", "team": "core", "role": "developer"})["key"]
    monkeypatch.setattr(workflows, "admin_client", lambda: admin)
    monkeypatch.setattr(configuration, "admin_client", lambda: admin)
    monkeypatch.setattr(workflows, "tenant_client", lambda: client(key))
    return TestClient(app, base_url="http://airi.test", headers={"authorization": f"Bearer {ADMIN}"})


def _served(control: TestClient) -> tuple[str, str]:
    """Who manages the workflow that serves, and its description."""
    found: dict[str, Any] = control.get("/admin/v1/workflows/nap").json()
    return found["manager"], found["resource"]["metadata"]["description"]


def _apply(control: TestClient, path: Path) -> None:
    query = "/admin/v1/apply?manager=file&take_over=true"
    control.post(
        query, content=path.read_text(), headers={"content-type": "application/yaml"}
    ).raise_for_status()


def test_a_file_is_put_there_and_run(
    control: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my flow.yaml"
    for description in ("one", "two", "two"):
        path.write_text(FLOW.replace("one", description))
        assert main(["workflow", "run", str(path), "--detach", "--output", "json"]) == 0
        run = json.loads(capsys.readouterr().out)
        assert (run["workflow"], [step["path"] for step in run["steps"]]) == ("nap", [description])
        assert _served(control) == ("api", description)


def test_what_files_manage_is_run_when_it_is_the_same_and_never_changed(
    control: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my flow.yaml"
    path.write_text(FLOW)
    _apply(control, path)
    assert main(["workflow", "run", str(path), "--detach"]) == 0
    assert _served(control) == ("file", "one")
    capsys.readouterr()
    path.write_text(FLOW.replace("one", "two"))
    assert main(["workflow", "run", str(path), "--detach"]) == 1
    said = capsys.readouterr().err
    assert f"{path} differs from the Workflow 'nap' that serves" in said
    assert f"`airi apply -f '{path}'`" in said
    assert "`airi workflow run nap`" in said
    assert _served(control) == ("file", "one")
    _apply(control, path)
    assert main(["workflow", "run", str(path), "--detach"]) == 0
    assert _served(control) == ("file", "two")


def test_a_fault_in_a_file_names_its_line(
    control: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(FLOW.replace("id: one", "id: one, if: inputs.x =="))
    assert main(["workflow", "run", str(path), "--detach"]) == 1
    assert f"{path}:5: Workflow/nap: steps.0.if: " in capsys.readouterr().err
    assert control.get("/admin/v1/workflows/nap").status_code == 404


@pytest.mark.usefixtures("control")
def test_apply_warns_of_a_tool_that_nobody_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control plane has loaded the tool files, so it knows; the start of such a run is refused."""
    path = tmp_path / "flow.yaml"
    path.write_text(
        FLOW.replace("{id: one, wait: {duration: 1s}}", "{id: one, call: tool, with: {tool: nobodys}}")
    )
    assert main(["apply", "-f", str(path)]) == 0
    warning = f"warning: {path}:5: Workflow/nap: steps.0.with.tool: fits no Tool and no function so far"
    assert warning in capsys.readouterr().out
    assert main(["workflow", "run", "nap", "--detach"]) == 1
    assert "unknown tool 'nobodys'" in capsys.readouterr().err
