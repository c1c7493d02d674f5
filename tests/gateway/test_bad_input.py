"""What bad input gets: a clear error in OpenAI's form, nothing of the inside in it, and the next call is fine."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.operations import OPERATIONS
from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER, USAGE, delta, finish
from tests.support.live import wait_until

pytestmark = pytest.mark.integration
CHAT = {"model": "rec/echo", "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/chat/completions"
_JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def fine_before_and_after(door: Door) -> Any:
    door.recorder.answer = lambda body: (
        [delta(content="Yes."), finish("stop"), USAGE, b"[DONE]"] if body.get("stream") else ANSWER
    )
    yield
    assert door.post(PATH, CHAT).status_code == 200


def judge(status: int, text: str, *, door: Door, anthropic: bool = False) -> dict[str, Any]:
    """Check the form of an error and that it tells nothing of the inside."""
    assert 400 <= status < 600
    body = json.loads(text)
    error: dict[str, Any] = body["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    if anthropic:
        assert body["type"] == "error"
    else:
        assert set(error) >= {"message", "type", "param", "code"}
    for inside in (
        "Traceback",
        'File "',
        "sk-upstream",
        door.live.key.rpartition("_")[2],
        "/work/",
        "object at 0x",
    ):
        assert inside not in text
    return error


def send(door: Door, raw: bytes) -> tuple[int, str]:
    """Send bytes as they are on a connection of their own; return status and body."""
    with socket.create_connection(("127.0.0.1", door.live.port), timeout=10) as connection:
        connection.sendall(raw)
        data = b""
        while chunk := connection.recv(65_536):
            data += chunk
            head, blank, body = data.partition(b"\r\n\r\n")
            length = next(
                (
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                ),
                None,
            )
            if blank and length is not None and len(body) >= length:
                return int(head[9:12]), body[:length].decode()
    raise AssertionError(f"no whole answer: {data[:200]!r}")


def request(
    door: Door, *, line: str = f"POST {PATH} HTTP/1.1", headers: str = "", body: bytes = b"{}"
) -> bytes:
    head = f"{line}\r\nhost: localhost\r\nauthorization: Bearer {door.live.key}\r\ncontent-type: application/json\r\n"
    return (head + headers + "\r\n").encode() + body


DEEP = 200_000
BODIES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "invalid_json"),
    ("malformed", b'{"model": ', "invalid_json"),
    ("trailing", b"{} {}", "invalid_json"),
    ("no object", b"[1]", "invalid_json"),
    ("null", b"null", "invalid_json"),
    ("NaN", b'{"model": "rec/echo", "temperature": NaN}', "invalid_json"),
    ("infinity", b'{"model": "rec/echo", "temperature": 1e999}', "invalid_json"),
    ("bad UTF-8", b'{"model": "\xff\xfe"}', "invalid_json"),
    ("UTF-16", '{"model": "m"}'.encode("utf-16"), "invalid_json"),
    ("half a surrogate", b'{"model": "\\ud800"}', "invalid_json"),
    ("deep list", b'{"model": ' + b"[" * DEEP + b"]" * DEEP + b"}", "invalid_json"),
    ("deep object", b'{"model": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}", "invalid_json"),
    (
        "just too deep to be sent on",
        json.dumps({**CHAT, "x": 1}).encode()[:-2] + b"[" * 985 + b"]" * 985 + b"}",
        "invalid_json",
    ),
    ("no model", b'{"messages": []}', "missing_model"),
    ("model is a number", b'{"model": 7}', "missing_model"),
    ("long model", b'{"model": "' + b"m" * 300 + b'"}', "invalid_type"),
    (
        "unknown model",
        b'{"model": "no\\u0000such", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}',
        "model_not_found",
    ),
]


@pytest.mark.parametrize(
    ("raw", "code"), [(raw, code) for _, raw, code in BODIES], ids=[b[0] for b in BODIES]
)
@pytest.mark.parametrize("path", [PATH, "/v1/messages"])
def test_bodies_that_cannot_be_read(door: Door, path: str, raw: bytes, code: str) -> None:
    with door.live.client() as client:
        answer = client.post(path, content=raw, headers=_JSON)
    error = judge(answer.status_code, answer.text, door=door, anthropic=path != PATH)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    if path == PATH:
        assert error["code"] == code
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 10**6), ("n", 10**400), ("n", -1), ("n", True), ("n", "2"), ("max_tokens", 10**30), ("max_tokens", 1.5),
        ("temperature", "hot"), ("temperature", 10**400), ("top_p", -1), ("stream", "yes"), ("stream_options", []),
        ("user", 7), ("user", "u" * 100_000), ("stop", [1]), ("messages", []), ("messages", {}), ("messages", [7]),
        ("messages", [{"role": 7}]), ("messages", [{"role": "user", "content": 7}]), ("tools", {}), ("tools", [7]),
        ("messages", [{"role": "user", "content": [7]}]),
        ("messages", [{"role": "user", "content": None, "tool_calls": [7]}]),
    ],
)  # fmt: skip
def test_wrong_values_are_named(door: Door, field: str, value: Any) -> None:
    answer = door.post(PATH, {**CHAT, field: value})
    assert answer.status_code == 400, answer.text
    error = judge(answer.status_code, answer.text, door=door)
    assert error["param"].startswith(field)


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b'{"model": "rec/echo", "messages": [{"role": "user", "content": "hi"}], "n": 99, "n": 1}', "n"),
        (
            b'{"model": "rec/echo", "messages": [{"role": "user", "content": "ann@example.com", "content": "hi"}]}',
            "content",
        ),
        (
            b'{"model": "rec/echo", "mod\\u0065l": "no-such", "messages": [{"role": "user", "content": "hi"}]}',
            "model",
        ),
        (b'{"model": "rec/echo", "messages": [], "x": [{"y": {"": 1, "z": ":", "": 1}}]}', ""),
    ],
)
@pytest.mark.parametrize("path", OPERATIONS)
def test_a_key_that_stands_twice_is_named(door: Door, path: str, raw: bytes, key: str) -> None:
    seen = len(door.recorder.seen)
    with door.live.client() as client:
        answer = client.post(path, content=raw, headers=_JSON)
    assert answer.status_code == 400
    error = judge(400, answer.text, door=door, anthropic=path == "/v1/messages")
    assert (error["code"], error["param"]) == ("duplicate_key", key)
    assert f"'{key}'" in error["message"]
    assert len(door.recorder.seen) == seen


@pytest.mark.parametrize(
    ("path", "raw", "key"),
    [
        ("/admin/v1/keys", b'{"tenant": "guarded", "tenant": "dev", "name": "x"}', "tenant"),
        ("/admin/v1/apply", b'{"resources": [{"kind": "Tenant", "kind": "Pool"}]}', "kind"),
        ("/v1/workflows/none/runs", b'{"inputs": {"a": 1, "a": 2}}', "a"),
        ("/v1/responses/input_tokens", b'{"model": "rec/echo", "input": "x", "input": "y"}', "input"),
    ],
)
def test_so_is_one_in_a_body_of_the_control_plane(door: Door, path: str, raw: bytes, key: str) -> None:
    with door.live.client() if path.startswith("/v1") else door.live.admin() as client:
        answer = client.post(path, content=raw, headers=_JSON)
        assert answer.status_code == 400
        error = judge(400, answer.text, door=door)
        assert (error["code"], error["param"]) == ("duplicate_key", key)
        # Any other body is read by its route as ever.
        assert client.post(path, content=b"{", headers=_JSON).status_code == 400
        assert client.post(path, content=b"{}", headers=_JSON).status_code in (200, 400, 404)


@pytest.mark.parametrize("path", ["/admin/v1/tenants", "/admin/v1/apply", "/v1/workflows/none/runs"])
@pytest.mark.parametrize(
    "raw",
    [
        rb'{"metadata": {"name": "odd", "description": "\ud800"}, "inputs": {"a": "\ud800"}}',
        b'{"metadata": {"name": "odd"}, "weight": NaN}',
        b'{"metadata": {"name": "odd", "description": "\xff"}}',
        b'{"metadata": ' + b'{"a": ' * 5_000 + b"1" + b"}" * 5_001,
    ],
)
def test_what_is_no_json_is_refused_by_the_control_plane_too(door: Door, path: str, raw: bytes) -> None:
    with door.live.client() if path.startswith("/v1") else door.live.admin() as client:
        answer = client.post(path, content=raw, headers=_JSON)
    assert answer.status_code == 400
    assert judge(400, answer.text, door=door)["code"] == "invalid_json"


def test_a_body_of_more_than_20_megabytes(door: Door) -> None:
    status, text = send(door, request(door, headers="content-length: 99999999\r\n", body=b""))
    assert status == 413
    assert judge(status, text, door=door)["code"] == "request_too_large"
    with door.live.client() as client:
        chunked = client.post(PATH, content=(b"x" * 65_536 for _ in range(400)), headers=_JSON)
    assert chunked.status_code == 413
    assert chunked.headers["x-request-id"].startswith("req_")


def test_keys_that_are_missing_broken_revoked_or_expired(door: Door) -> None:
    with httpx.Client(base_url=door.live.base, trust_env=False) as stranger:
        for headers in (
            {},
            {"authorization": "Basic abc"},
            {"authorization": "Bearer"},
            {"authorization": "Bearer airi_x_y"},
            {"authorization": f"Bearer {door.live.key}x"},
            {"authorization": "Bearer " + "a" * 5_000},
            {"x-api-key": "sk-ant-not-ours"},
        ):
            for path in OPERATIONS:
                answer = stranger.post(path, json=CHAT, headers=headers)
                assert answer.status_code == 401, headers
                judge(401, answer.text, door=door, anthropic=path == "/v1/messages")
    with door.live.admin() as admin:
        expires = int(time.time() * 1_000) + 1_000
        made = admin.post(
            "/admin/v1/keys", json={"tenant": "guarded", "name": "short", "expires_at_ms": expires}
        ).json()
        refused = wait_until(
            lambda: (
                (answer := door.post(PATH, CHAT, made["key"])).status_code == 401
                and "expired" in answer.text
                and answer
            )
        )
        judge(401, refused.text, door=door)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("content-length: 2\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
        ("content-length: 2\r\ncontent-length: 3\r\n", b"{}"),
        ("content-length: +2\r\n", b"{}"),
        ("content-length: 2, 2\r\n", b"{}"),
        ("transfer-encoding: chunked\r\n", b"zz\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\n", b"2\r\n{}garbage\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked, identity\r\n", b"2\r\n{}\r\n0\r\n\r\n"),
        ("transfer-encoding : chunked\r\n", b"0\r\n\r\n"),
        ("host: other\r\ncontent-length: 2\r\n", b"{}"),
        ("x-a: b\r\n folded: c\r\ncontent-length: 2\r\n", b"{}"),
        ("x-a: b\x00c\r\ncontent-length: 2\r\n", b"{}"),
        ("x-a: b\rc: d\r\ncontent-length: 2\r\n", b"{}"),
    ],
)
def test_smuggled_requests(door: Door, headers: str, body: bytes) -> None:
    seen = len(door.recorder.seen)
    status, text = send(door, request(door, headers=headers, body=body))
    assert status == 400
    judge(status, text, door=door)
    assert len(door.recorder.seen) == seen


def test_headers_without_end(door: Door) -> None:
    many = "".join(f"x-{number}: y\r\n" for number in range(2_000))
    long = "x-long: " + "y" * 200_000 + "\r\n"
    for headers in (many, long):
        status, text = send(door, request(door, headers=headers))
        assert status == 431
        assert judge(status, text, door=door)["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/", "/v1//chat/completions", "/v1/chat/%63ompletions", "/V1/chat/completions",
        "/v1/../v1/chat/completions", "/v1/chat/completions%2f..", "/v1/chat/completions;x=1", "/v1/responses/../../internal/x",
        "/internal/workflow-model/v1/chat/completions", "/internal/detectors/v1/moderations",
        "/v1/messages/..%2f..%2finternal%2fdetectors%2fv1%2fmoderations", "/v1/messages/../../internal/detectors/v1/moderations",
        "/.env", "/admin/v1/../../internal/x", "/%00", "/v1/models/%2e%2e/keys", "//evil.example/v1/chat/completions",
    ],
)  # fmt: skip
def test_path_tricks_lead_nowhere(door: Door, path: str) -> None:
    body = json.dumps(CHAT).encode()
    seen = len(door.recorder.seen)
    raw = request(door, line=f"POST {path} HTTP/1.1", headers=f"content-length: {len(body)}\r\n", body=body)
    status, text = send(door, raw)
    assert status in (400, 404, 405), (status, text)
    judge(status, text, door=door, anthropic="messages" in path and "type" in json.loads(text))
    assert len(door.recorder.seen) == seen


def test_the_host_header_decides_nothing(door: Door) -> None:
    body = json.dumps(CHAT).encode()
    for host in ("evil.example", "127.0.0.1:1", "admin", "localhost/../admin"):
        raw = (
            f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\nx-forwarded-host: admin\r\nx-original-url: /admin/v1/keys\r\n"
            f"authorization: Bearer {door.live.key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body  # fmt: skip
        status, text = send(door, raw)
        assert status in (200, 400)
        assert "airi_" not in text


def test_methods_and_media_types(door: Door) -> None:
    with door.live.client() as client:
        for path in OPERATIONS:
            for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
                answer = client.request(method, path)
                assert answer.status_code == 405
                judge(405, answer.text, door=door, anthropic=path == "/v1/messages")
            for media in (
                "text/plain",
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x",
            ):
                answer = client.post(path, content=b"{}", headers={"content-type": media})
                assert answer.status_code == 415
        for path in ("/nothing", "/v1", "/v1/files", "/v1/chat", "/v1/responses/none/nothing"):
            answer = client.get(path)
            assert answer.status_code == 404
            judge(404, answer.text, door=door)


@pytest.mark.parametrize(
    ("name", "value"),
    [("idempotency-key", "k" * 300), ("traceparent", "00-zz"), ("x-airi-priority", "very"), ("x-airi-tags", "," * 500),
     ("x-airi-session", "s" * 5_000), ("x-airi-tags", "\xff\xfe")],
)  # fmt: skip
def test_odd_headers(door: Door, name: str, value: str) -> None:
    with door.live.client() as client:
        answer = client.post(PATH, json=CHAT, headers=[(name.encode(), value.encode("latin-1"))])
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        judge(400, answer.text, door=door)


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_PLACES: dict[str, tuple[dict[str, Any], list[str]]] = {
    PATH: (
        CHAT,
        ["messages", "tools", "n", "max_tokens", "stream", "stream_options", "stop", "user", "response_format", "metadata"],
    ),
    "/v1/completions": ({"model": "rec/echo", "prompt": "x"}, ["prompt", "n", "stream", "suffix", "echo"]),
    "/v1/embeddings": ({"model": "rec/echo", "input": "x"}, ["input", "dimensions", "encoding_format"]),
    "/v1/messages": (
        {**CHAT, "max_tokens": 5},
        ["messages", "system", "tools", "tool_choice", "thinking", "metadata", "stream", "output_config", "max_tokens"],
    ),
    "/v1/responses": (
        {"model": "rec/echo", "input": "x", "store": False},
        ["input", "instructions", "tools", "tool_choice", "text", "reasoning", "stream", "previous_response_id", "include"],
    ),
    "/v1/moderations": ({"input": "x"}, ["input", "model"]),
}  # fmt: skip


@pytest.mark.parametrize("path", _PLACES)
def test_anything_in_any_field(door: Door, path: str) -> None:
    body, places = _PLACES[path]
    with door.live.client() as client:

        @settings(
            max_examples=40, deadline=None, derandomize=True, database=None,
            suppress_health_check=[HealthCheck.too_slow],
        )  # fmt: skip
        @given(st.dictionaries(st.sampled_from(places), _ANYTHING, min_size=1, max_size=3))
        def check(change: dict[str, Any]) -> None:
            answer = client.post(path, json={**body, **change})
            assert answer.status_code in (200, 400, 404), answer.text
            if answer.status_code != 200:
                judge(answer.status_code, answer.text, door=door, anthropic=path == "/v1/messages")

        check()
