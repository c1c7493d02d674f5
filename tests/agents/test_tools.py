"""Tools: schemas from signatures, loading, HTTP within bounds, no way to private addresses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from agents.documents import FreshDocument
from agents.errors import AmbiguousEffect, StepFailed, ToolRefusedError
from agents.tools import ToolContext, ToolError, tool
from agents.tools.addresses import is_public
from agents.tools.functions import FUNCTIONS, Registry, load_tools
from agents.tools.http import HttpTools, fill
from agents.tools.toolbox import ToolBox
from airi.config.document import ConfigDocument
from airi.config.kinds import HttpTool, Metadata, Tool
from airi.errors import ConfigError
from airi.secrets import Secret
from tests.agents.witness import serving

CONTEXT = ToolContext("run_1:a:0", "acme", "run_1", "a", 1)


def test_schema_from_the_signature(registry: Registry) -> None:
    @tool("t", effect="keyed", registry=registry)
    def t(name: str, context: ToolContext, tags: list[str] | None = None) -> str:
        """Does things.

        Well.
        """
        return name

    found = registry.named("t")
    assert found is not None
    assert found.description == "Does things.\n\nWell."
    assert found.input_schema["required"] == ["name"]
    assert set(found.input_schema["properties"]) == {"name", "tags"}
    assert found.input_schema["additionalProperties"] is False
    assert found.context_parameter == "context"
    with pytest.raises(TypeError):
        tool("bad", registry=registry)(lambda *args: None)


def test_arguments_are_checked_without_telling_values(registry: Registry) -> None:
    @tool("t", registry=registry)
    def t(n: int) -> int:
        return n

    box = ToolBox(lambda: ConfigDocument({}), registry=registry)
    found = box.find("t", "acme")
    assert box.check(found, {"n": 1}) == {"n": 1}
    for args, says in (
        ({"n": "s3cret"}, "n: must satisfy type: integer"),
        ({}, "'n' is required"),
        ({"n": 1, "x": "s3cret"}, "a property that"),
    ):
        with pytest.raises(ToolRefusedError) as caught:
            box.check(found, args)
        assert says in caught.value.message
        assert "s3cret" not in caught.value.message


def test_tools_of_the_configuration(registry: Registry) -> None:
    @tool("inner", effect="idempotent", registry=registry)
    def inner(n: int) -> int:
        return n

    here = Tool(
        metadata=Metadata(name="crm"), function=f"{__name__}:inner", tenants=["acme", "glob*"], effect="keyed"
    )
    gone = Tool(metadata=Metadata(name="gone"), function="os:system")
    box = ToolBox(lambda: ConfigDocument.of([here, gone]), registry=registry)
    assert box.names() == {"inner", "crm", "gone"}
    assert box.find("crm", "globex").effect_class == "keyed"
    assert box.find("crm", "acme").input_schema["required"] == ["n"]
    for name, tenant in (("crm", "other"), ("gone", "acme"), ("none", "acme")):
        with pytest.raises(StepFailed):
            box.find(name, tenant)


def test_a_tool_that_was_applied_just_now_is_found_and_an_outage_loses_none(registry: Registry) -> None:
    served = [ConfigDocument.of([Tool(metadata=Metadata(name="crm"), function=f"{__name__}:inner")])]
    looked_up = []

    def current() -> ConfigDocument:
        looked_up.append(1)
        if not served:
            raise OperationalError("SELECT 1", {}, Exception("away"))
        return served[-1]

    @tool("inner", registry=registry)
    def inner() -> int:
        return 1

    document = FreshDocument(current)
    box = ToolBox(document, registry=registry, newest=partial(document, anew=True))
    for name in ("crm", "inner", "crm"):
        assert box.find(name, "acme").name == name
    assert len(looked_up) == 1, "at most once a second"
    served.append(ConfigDocument.of([Tool(metadata=Metadata(name="new"), function=f"{__name__}:inner")]))
    assert box.find("new", "acme").name == "new"
    served.clear()
    with pytest.raises(StepFailed, match="no tool 'newer'"):
        box.find("newer", "acme")
    assert box.find("new", "acme").name == "new"


def test_loading_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from agents.tools import tool\n@tool('mine.x')\ndef x(n: int) -> int:\n    return n\n"
    )
    assert load_tools([tmp_path / "mine.py"]) == ["mine"]
    assert FUNCTIONS.referenced("mine:x") is FUNCTIONS.named("mine.x")
    (tmp_path / "bad.py").write_text("1/0")
    with pytest.raises(ConfigError, match=r"bad\.py: cannot be loaded: ZeroDivisionError"):
        load_tools([tmp_path / "bad.py"])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1", "192.0.2.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


class _Site:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.url = ""


@pytest.fixture
def site() -> Iterator[_Site]:
    made = _Site()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            made.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            status, headers, data = (
                made.answers.pop(0)
                if made.answers
                else (200, {"content-type": "application/json"}, b'{"ok": true}')
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:
                return

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            return

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        made.url = url
        yield made


async def _call(url: str, args: dict[str, Any] | None = None, *, unsafe: bool = False, **options: Any) -> Any:
    tools = HttpTools()
    secrets = options.pop("secrets", {})
    try:
        return await tools.call(HttpTool(url=url, **options), args or {}, CONTEXT, secrets, unsafe=unsafe)
    finally:
        await tools.close()
        await asyncio.sleep(0)


async def test_a_post_carries_key_and_secrets(site: _Site) -> None:
    answer = await _call(
        f"{site.url}/c/{{id}}",
        {"id": "a/b", "n": 1},
        allow_private=True,
        headers={"x-a": "1"},
        secrets={"authorization": Secret("s")},
    )
    assert answer == {"ok": True}
    method, path, headers, body = site.seen[0]
    assert (method, path, json.loads(body)) == ("POST", "/c/a%2Fb", {"n": 1})
    assert headers["idempotency-key"] == CONTEXT.key
    assert (headers["x-a"], headers["authorization"]) == ("1", "s")


async def test_a_get_has_a_query(site: _Site) -> None:
    site.answers.append((200, {"content-type": "text/plain"}, b"hello"))
    assert await _call(f"{site.url}/q", {"q": "a b", "n": 2}, method="GET", allow_private=True) == "hello"
    assert site.seen[0][1] == "/q?q=a+b&n=2"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"]
)
async def test_private_addresses_are_refused(site: _Site, host: str) -> None:
    port = site.url.rpartition(":")[2]
    with pytest.raises((ToolRefusedError, StepFailed)):
        await _call(f"http://{host}:{port}/")
    assert site.seen == []


@pytest.mark.parametrize(
    ("status", "headers", "safe", "unsafe"),
    [
        (404, {}, ToolError, ToolError),
        (302, {"location": "http://127.0.0.1/"}, ToolRefusedError, ToolRefusedError),
        (500, {}, StepFailed, AmbiguousEffect),
        (504, {}, StepFailed, AmbiguousEffect),
        (429, {"retry-after": "2"}, StepFailed, StepFailed),
    ],
)
async def test_what_answers_mean(
    site: _Site, status: int, headers: dict[str, str], safe: type, unsafe: type
) -> None:
    for is_unsafe, wanted in ((False, safe), (True, unsafe)):
        site.answers.append((status, headers, b""))
        with pytest.raises(wanted) as caught:
            await _call(site.url, allow_private=True, unsafe=is_unsafe)
        assert type(caught.value) is wanted
    assert len(site.seen) == 2, "a redirect is not followed"
    if status == 429:
        assert caught.value.retry_after_ms == 2_000


async def test_bounds(site: _Site) -> None:
    site.answers.append((200, {}, b"x" * 1_000_001))
    with pytest.raises(ToolError, match="larger than"):
        await _call(site.url, allow_private=True)
    with pytest.raises(StepFailed) as caught:
        await _call("http://127.0.0.1:9/", allow_private=True)
    assert caught.value.error_class == "connection"
    with pytest.raises(ToolRefusedError):
        await _call("file:///etc/passwd")


def test_filling_an_address() -> None:
    assert fill("http://x/{a}?b={b}", {"a": "/../", "b": "1&c=2", "d": 3}) == (
        "http://x/%2F..%2F?b=1%26c%3D2",
        {"d": 3},
    )
    with pytest.raises(ToolRefusedError):
        fill("http://x/{a}", {})
