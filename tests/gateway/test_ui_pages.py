"""The dashboard's pages and the JSON behind them, asked as a browser and as a program ask."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from airi.ids import new_trace_id
from gateway.control.ui.pages import STATIC, TEMPLATES, local_path
from observability.emitter import Emitter, EmitterLimits
from observability.record import CallContent, LiveCall
from observability.writer import Writer
from tests.gateway.ui_world import World, good_call, make_world, refused_call
from tests.observability.make import span


@pytest.fixture
def world(home: Path, redis_url: str) -> World:
    return make_world(home, redis_url)


def client(world: World, key: str = "") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {world.keys[key]}"} if key else {}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(world.app, raise_app_exceptions=True, client=("127.0.0.1", 1)),
        base_url="http://airi.test",
        headers=headers,
    )


@pytest.fixture
async def browser(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """Signed in as an administrator of tenant acme."""
    async with client(world) as made:
        answer = await made.post("/ui/sign-in", data={"key": world.keys["org_admin"], "next": "/ui/calls"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/calls")
        yield made


async def test_a_stranger_is_sent_to_sign_in_and_comes_back(world: World) -> None:
    async with client(world) as made:
        answer = await made.get("/ui/calls?since=1h&model=a%20b")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/ui/sign-in?next=%2Fui%2Fcalls%3Fsince%3D1h%26model%3Da%2520b"
        form = await made.get(answer.headers["location"])
        assert 'value="/ui/calls?since=1h&amp;model=a%20b"' in form.text


@pytest.mark.parametrize(
    "next_page", ["//evil.example", "https://evil.example", "/ui\\@evil", "/uix\n", "/v1"]
)
def test_signing_in_never_leads_elsewhere(next_page: str) -> None:
    assert local_path(next_page) == "/ui"


async def test_a_wrong_key_and_a_key_with_nothing_to_see_are_refused(world: World) -> None:
    async with client(world) as made:
        for key in ("airi_0_0", "", world.keys["service"]):
            answer = await made.post("/ui/sign-in", data={"key": key})
            assert answer.status_code == 401
            assert "set-cookie" not in answer.headers
            assert 'role="alert"' in answer.text
        answer = await made.post(
            "/ui/sign-in", data={"key": world.keys["org_admin"]}, headers={"sec-fetch-site": "cross-site"}
        )
        assert answer.status_code == 403


async def test_signing_out_needs_the_forms_token(browser: httpx.AsyncClient) -> None:
    assert (await browser.post("/ui/sign-out")).status_code == 403
    page = (await browser.get("/ui/calls")).text
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert token is not None
    answer = await browser.post("/ui/sign-out", data={"csrf_token": token[1]})
    assert answer.status_code == 303
    assert (await browser.get("/ui/calls")).status_code == 303


async def test_headers_of_every_page(world: World, browser: httpx.AsyncClient) -> None:
    record = good_call()
    world.write(record)
    for path in ("/ui/calls", f"/ui/traces/{record.trace_id}", "/ui/sign-in", "/ui/traces/nothing"):
        headers = (await browser.get(path)).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"


async def test_pages_hold_nothing_that_the_policy_forbids(world: World, browser: httpx.AsyncClient) -> None:
    record = good_call()
    world.write(record, refused_call())
    for path in ("/ui/calls", f"/ui/traces/{record.trace_id}", "/ui/sign-in"):
        page = (await browser.get(path)).text
        assert not re.search(r"\sstyle=|\son\w+=|javascript:|<style|<script>", page)
        assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)


async def test_the_list_shows_filters_and_pages(world: World, browser: httpx.AsyncClient) -> None:
    world.write(
        *[good_call(model=f"m{n % 2}", alias=f"m{n % 2}") for n in range(60)], refused_call(alias="m0")
    )
    page = (await browser.get("/ui/calls?model=m0")).text
    assert page.count("<tr data-id") == 31
    assert "<b>31</b> calls" in page
    assert 'class="bad-text">1</b> failed' in page
    first = (await browser.get("/ui/calls")).text
    older = re.search(r'href="([^"]+)" rel="next"', first)
    assert older is not None
    second = (await browser.get(older[1].replace("&amp;", "&"))).text
    ids = re.findall(r'<tr data-id="([^"]+)"', first) + re.findall(r'<tr data-id="([^"]+)"', second)
    assert len(ids) == len(set(ids)) == 61
    fragment = await browser.get("/ui/calls", headers={"x-airi-fragment": "1"})
    assert "<html" not in fragment.text
    assert fragment.text.count("<tr data-id") == 50


async def test_a_bad_filter_is_said_in_words(browser: httpx.AsyncClient) -> None:
    for query in ("since=yesterday", "status=9", "min_cost_usd=x", "cursor=zz", "colour=red"):
        answer = await browser.get(f"/ui/calls?{query}")
        assert answer.status_code == 400, query
        assert "text/html" in answer.headers["content-type"]


async def test_a_trace_says_why(world: World, browser: httpx.AsyncClient) -> None:
    record = good_call()
    world.write(record)
    page = (await browser.get(f"/ui/traces/{record.trace_id}")).text
    stages = re.findall(r'<li class="\w+" data-stage="(\w+)"', page)
    assert stages == ["auth", "limits", "policy", "route", "attempts", "price"]
    for words in (
        "API key k_7c1, team search of acme, role developer.",
        "Output was lowered to 512 of 4\u202f096 tokens",
        "“no-finance” would have refused it",
        "It already holds the beginning of this prompt in its cache.",
        "Not sim-2: it rests after too many failures.",
        "Answered by sim/sim-1 after 1 other try",
        "$0.000142",
        "simulated",
    ):
        assert words in page, words


async def test_a_refused_call_shows_where_it_ended(world: World, browser: httpx.AsyncClient) -> None:
    record = refused_call()
    world.write(record)
    page = (await browser.get(f"/ui/traces/{record.trace_id}")).text
    assert "Policy “no-cards” refused it (CARD)." in page
    assert "Found 1 × card." in page
    assert re.findall(r'<li class="(\w+)" data-stage="(\w+)"', page)[2:] == [
        ("bad", "policy"),
        ("quiet", "route"),
        ("quiet", "attempts"),
        ("quiet", "price"),
    ]


async def test_a_trace_of_several_shows_the_whole(world: World, browser: httpx.AsyncClient) -> None:
    first = good_call(run_id="run_1", step="plan")
    step = span(
        trace_id=first.trace_id,
        run_id="run_1",
        name="plan",
        started_unix_ns=first.started_unix_ns - 10**6,
        duration_us=10**6,
    )
    second = good_call(trace_id=first.trace_id, parent_span_id=step.span_id, model="smart", alias="smart")
    world.write(first, second, step)
    page = (await browser.get(f"/ui/traces/{first.trace_id}?span={second.span_id}")).text
    assert "The whole trace" in page
    assert "<h1>smart</h1>" in page
    assert 'class="deep-1"' in page


async def test_callers_text_is_escaped(world: World, browser: httpx.AsyncClient) -> None:
    nasty = "<script>alert(1)</script>"
    record = good_call(model=nasty, user=nasty, session=nasty, error_message=nasty, status=400, tags=[nasty])
    world.write(
        record, contents=[(0, CallContent(b'{"messages":[{"role":"user","content":"</pre><script>x"}]}'))]
    )
    for path in ("/ui/calls", f"/ui/traces/{record.trace_id}", f"/ui/calls?q={nasty}"):
        page = (await browser.get(path)).text
        assert "<script>alert" not in page
        assert "</pre><script>x" not in page


async def test_another_tenants_trace_does_not_exist(world: World) -> None:
    record = good_call()
    world.write(record)
    async with (
        client(world, "rival") as rival,
        client(world, "admin") as admin,
        client(world, "service") as service,
    ):
        for path in ("/ui/traces/{}", "/admin/v1/traces/{}", "/admin/v1/traces/{}/calls/" + record.span_id):
            assert (await rival.get(path.format(record.trace_id))).status_code == 404
            assert (await admin.get(path.format(record.trace_id))).status_code == 200
            assert (await service.get(path.format(record.trace_id))).status_code == 403
        assert (await rival.get("/admin/v1/traces?tenant=acme")).json()["data"] == []
        assert len((await admin.get("/admin/v1/traces?tenant=acme")).json()["data"]) == 1
        assert (await rival.get("/admin/v1/traces/histogram?tenant=acme")).json()["bars"] == []
        assert (await rival.get("/admin/v1/usage?tenant=acme")).json()["data"] == []
        assert "acme" not in (await rival.get("/ui/calls?tenant=acme&since=all")).text.replace(
            'value="acme"', ""
        ).replace("=acme", "").replace("<b>acme</b>", "")


async def test_the_json_api(world: World) -> None:
    record = good_call(run_id="run_1")
    world.write(record, contents=[(0, CallContent(b'{"messages":[]}', b'{"id":"x"}'))])
    async with client(world, "developer") as made:
        listed = (await made.get("/admin/v1/traces?model=fast&min_cost_usd=0.0001&simulated=true")).json()
        assert [call["trace_id"] for call in listed["data"]] == [record.trace_id]
        whole = (await made.get(f"/admin/v1/traces/{record.trace_id}")).json()
        call = whole["calls"][0]
        assert call["decisions"][0]["stage"] == "auth"
        assert call["attempts"][1]["target"] == "sim/sim-1"
        assert call["has_content"] is True
        one = (await made.get(f"/admin/v1/traces/{record.trace_id}/calls/{record.span_id}")).json()
        assert one["content"]["response"] == {"id": "x"}
        usage = (await made.get("/admin/v1/usage?since=1h&step=60&by=model")).json()["data"]
        assert (usage[0]["group"], usage[0]["cost_usd_micros"]) == ("fast", 142)
        for path in (
            "/admin/v1/traces?nonsense=1",
            "/admin/v1/usage?step=7",
            "/admin/v1/usage?since=90d&step=60",
        ):
            answer = await made.get(path)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert (await made.get("/admin/v1/traces/live")).status_code == 503
        assert (await made.get("/metrics")).status_code == 403


def test_the_whole_dashboard_is_small() -> None:
    files = [*STATIC.iterdir(), *(STATIC.parent / "templates").iterdir()]
    assert sum(path.stat().st_size for path in files) < 250 * 1024
    assert len(TEMPLATES.list_templates()) == len(list((STATIC.parent / "templates").iterdir()))


def test_every_colour_of_light_has_one_in_the_dark() -> None:
    sheet = (STATIC / "airi.css").read_text()
    light, *dark = re.findall(r"\{[^{}]*--paper:[^{}]*\}", sheet)
    names = set(re.findall(r"(--[\w-]+):", light)) - {"--mono", "--sans"}
    assert len(dark) == 2
    for block in dark:
        assert set(re.findall(r"(--[\w-]+):", block)) == names


async def test_calls_in_flight_stand_above_the_list(world: World, browser: httpx.AsyncClient) -> None:
    """With a writer beside the control plane; without one the list is shown all the same."""
    assert "The record writer does not answer" in (await browser.get("/ui/calls")).text
    writer = Writer(world.settings)
    await writer.start()
    emitter = Emitter(world.settings.writer_socket, "gateway-0", EmitterLimits(pulse_s=0.05, flush_s=0.01))
    await emitter.start()
    now = time.time_ns()
    emitter.live(
        [
            LiveCall(
                trace_id=new_trace_id(), tenant=tenant, started_unix_ns=now, model=model, stage="first_byte"
            )
            for tenant, model in (("acme", "mine"), ("rival", "theirs"))
        ]
    )
    try:
        async with asyncio.timeout(10):
            while "In flight" not in (page := (await browser.get("/ui/calls")).text):
                await asyncio.sleep(0.02)
        assert "mine" in page
        assert "receiving" in page
        assert "theirs" not in page
        assert "Records are written" in page
        assert "In flight" not in (await browser.get("/ui/calls?model=other")).text
    finally:
        await emitter.close()
        await writer.stop()
