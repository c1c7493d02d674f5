"""The pages of runs over the real engine: a workflow that waits for a person, decided and cancelled from the page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agents.commands import Starter
from agents.engine import Engine, prepare
from agents.service import RunService
from airi.config.document import ConfigDocument
from airi.config.kinds import Model, Workflow
from airi.content import ContentStore
from airi.database import open_engine
from airi.keyring import KeyRing
from airi.settings import Settings
from gateway.control.ui.graph import BOX_HEIGHT, BOX_WIDTH, Node, draw
from tests.gateway.ui_world import World, good_call, make_world
from tests.observability.make import span

WORKFLOW = """
apiVersion: airi/v1alpha1
kind: Workflow
metadata: {name: triage}
inputs: {type: object, properties: {ticket: {type: string}}}
budget: {cost_usd: 0.5}
steps:
  - id: ask
    wait: {approval: {role: auditor, message: "Refund <b>{{ inputs.ticket }}</b>?"}}
  - id: answer
    needs: [ask]
    call: llm
    with: {model: fast, prompt: "Answer {{ inputs.ticket }}"}
  - id: note
    needs: [ask]
    call: llm
    with: {model: fast, prompt: "Note"}
  - id: close
    needs: [answer, note]
    call: llm
    with: {model: fast, prompt: "Close"}
"""


def run_service(home: Path) -> RunService:
    settings = Settings.from_environment({"AIRI_HOME": str(home)})
    database = open_engine(settings.effective_runs_url, full_sync=True)
    prepare(database)
    fast = Model.model_validate(
        {
            "metadata": {"name": "fast"},
            "versions": [{"name": "v1", "targets": [{"pool": "sim", "model": "m"}]}],
        }
    )
    document = ConfigDocument.of([Workflow.model_validate(yaml.safe_load(WORKFLOW)), fast])
    return RunService(Engine(database, ContentStore(database, KeyRing.open_for(settings))), lambda: document)


@pytest.fixture
def world(home: Path, redis_url: str) -> World:
    return make_world(home, redis_url, run_service(home))


@pytest.fixture
def run_id(world: World) -> str:
    made, _ = world.services.run_service.start("triage", {"ticket": "T-1"}, Starter("acme", "search", "k"))
    return str(made)


class Browser:
    """A signed-in client that carries the form's token."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def page(self, path: str) -> str:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    async def post(self, path: str, **data: Any) -> httpx.Response:
        token = re.search(r'name="csrf_token" value="([^"]+)"', await self.page("/ui/runs"))
        assert token is not None
        return await self.http.post(path, data={"csrf_token": token[1], **data})


async def signed_in(world: World, role: str) -> AsyncIterator[Browser]:
    transport = httpx.ASGITransport(world.app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://airi.test") as http:
        assert (await http.post("/ui/sign-in", data={"key": world.keys[role]})).status_code == 303
        yield Browser(http)


@pytest.fixture
async def org_admin(world: World) -> AsyncIterator[Browser]:
    async for browser in signed_in(world, "org_admin"):
        yield browser


@pytest.fixture
async def developer(world: World) -> AsyncIterator[Browser]:
    async for browser in signed_in(world, "developer"):
        yield browser


@pytest.fixture
async def rival(world: World) -> AsyncIterator[Browser]:
    async for browser in signed_in(world, "rival"):
        yield browser


def states(page: str) -> dict[str, str]:
    return dict(re.findall(r'data-step="([^"]+)" data-step-state="([^"]+)"', page))


async def test_a_person_decides_on_the_page(org_admin: Browser, run_id: str) -> None:
    page = await org_admin.page(f"/ui/runs/{run_id}")
    assert states(page) == {"ask": "waiting", "answer": "pending", "note": "pending", "close": "pending"}
    assert "Refund &lt;b&gt;T-1&lt;/b&gt;?" in page
    assert "data-running" in page
    answer = await org_admin.post(f"/ui/runs/{run_id}/decide", step="ask", decision="approve", comment="fine")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/runs/{run_id}")
    page = await org_admin.page(f"/ui/runs/{run_id}")
    assert states(page)["ask"] == "succeeded"
    assert states(page)["answer"] in ("ready", "running")
    again = await org_admin.post(f"/ui/runs/{run_id}/decide", step="ask", decision="reject")
    assert again.status_code == 409
    assert "decided already" in again.text


async def test_a_role_that_may_not_decide_is_told_which_may(developer: Browser, run_id: str) -> None:
    page = await developer.page(f"/ui/runs/{run_id}")
    assert "It takes a key of role auditor." in page
    assert 'value="approve"' not in page
    refused = await developer.post(f"/ui/runs/{run_id}/decide", step="ask", decision="approve")
    assert refused.status_code == 403


async def test_a_run_is_cancelled(org_admin: Browser, run_id: str) -> None:
    assert (
        await org_admin.http.post(f"/ui/runs/{run_id}/cancel")
    ).status_code == 403  # without the form's token
    assert (await org_admin.post(f"/ui/runs/{run_id}/cancel")).status_code == 303
    page = await org_admin.page(f"/ui/runs/{run_id}")
    assert re.search(r"data-state>(cancelled|stopping)<", page)


async def test_another_tenants_run_does_not_exist(rival: Browser, run_id: str) -> None:
    assert (await rival.http.get(f"/ui/runs/{run_id}")).status_code == 404
    assert (await rival.post(f"/ui/runs/{run_id}/cancel")).status_code == 404
    assert run_id not in await rival.page("/ui/runs")


async def test_the_list_and_its_states(org_admin: Browser, run_id: str) -> None:
    assert run_id in await org_admin.page("/ui/runs")
    assert run_id in await org_admin.page("/ui/runs?state=waiting&workflow=triage")
    assert run_id not in await org_admin.page("/ui/runs?state=completed")


async def test_steps_link_to_their_calls(world: World, org_admin: Browser, run_id: str) -> None:
    call = good_call(run_id=run_id, step="answer", replayed=True)
    world.write(call, span(run_id=run_id, name="answer"))
    page = await org_admin.page(f"/ui/runs/{run_id}")
    assert f"/ui/traces/{call.trace_id}?span={call.span_id}" in page
    assert "1 repeated answers" in page
    assert "Over time" in page


def test_the_layout_of_a_diamond() -> None:
    nodes = [Node("a"), Node("b", ("a",)), Node("c", ("a",)), Node("d", ("b", "c")), Node("e", ("a", "d"))]
    drawing = draw(nodes, frozenset({"a"}))
    places = {box.node.id: (box.x, box.y) for box in drawing.boxes}
    assert places["a"][0] < places["b"][0] == places["c"][0] < places["d"][0] < places["e"][0]
    assert {(e.source, e.target) for e in drawing.edges if e.done} == {("a", "b"), ("a", "c"), ("a", "e")}


@given(st.data())
def test_no_two_boxes_overlap_and_all_lie_within(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 25))
    nodes = [
        Node(str(n), tuple(map(str, data.draw(st.sets(st.integers(0, n - 1), max_size=4))) if n else ()))
        for n in range(size)
    ]
    drawing = draw(nodes, frozenset())
    assert len(drawing.boxes) == size
    for one in drawing.boxes:
        assert 0 <= one.x <= drawing.width - BOX_WIDTH
        assert 0 <= one.y <= drawing.height - BOX_HEIGHT
        for other in drawing.boxes:
            if one is not other:
                assert abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT
    assert len(drawing.edges) == sum(len(node.needs) for node in nodes)


def test_a_circle_is_drawn_all_the_same() -> None:
    assert len(draw([Node("a", ("b",)), Node("b", ("a",))], frozenset()).boxes) == 2
