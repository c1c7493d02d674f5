"""The way of a call, through a whole tree of processes, on the simulated pool."""

from __future__ import annotations

import gzip
import json
import time

import httpx
import pytest

from tests.support.live import Live, wait_until

pytestmark = pytest.mark.integration
CHAT = {"model": "sim/small", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 32}


def events(text: str) -> list[str]:
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


def test_a_plain_call(live: Live) -> None:
    with live.client() as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"]
    assert body["usage"]["completion_tokens"] > 0
    assert answer.headers["x-airi-model"].startswith("sim/small@")
    assert answer.headers["x-airi-target"].startswith("sim/")
    assert answer.headers["x-airi-simulated"] == "true"


def test_a_stream_ends_and_hides_the_usage_nobody_asked_for(live: Live) -> None:
    with live.client() as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        asked = client.post(
            "/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        )
    chunks = events(answer.text)
    assert chunks[-1] == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks[:-1]]
    assert all(chunk["choices"] for chunk in parsed)
    assert json.loads(events(asked.text)[-2])["usage"]["completion_tokens"] > 0


def test_embeddings_and_models(live: Live) -> None:
    with live.client() as client:
        answer = client.post("/v1/embeddings", json={"model": "sim/embed", "input": ["one", "two"]})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 2
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert {"sim/small", "sim/large", "sim/embed", "fast", "smart"} <= set(names)
        assert client.get("/v1/models/sim/small").json()["id"] == "sim/small"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "sim/smal"}, 404, "model_not_found"),
        ({"messages": "hello"}, 400, "invalid_type"),
        ({"n": 0}, 400, "invalid_value"),
        ({"temperature": "warm"}, 400, "invalid_type"),
    ],
)
def test_what_is_wrong_is_said(live: Live, change: dict[str, object], status: int, code: str) -> None:
    with live.client() as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, **change})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code


def test_keys_are_needed_and_revoked_at_once(live: Live) -> None:
    with live.client("airi_nobody_0000") as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 401
    with live.admin() as admin:
        made = admin.post("/admin/v1/keys", json={"tenant": "dev", "name": "short-lived"})
        assert made.status_code in (200, 201), made.text
        token, key_id = made.json()["key"], made.json()["id"]
        with live.client(token) as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
            revoked_at = time.monotonic()
            assert admin.delete(f"/admin/v1/keys/{key_id}").status_code < 300
            wait_until(lambda: client.post("/v1/chat/completions", json=CHAT).status_code == 401, 5)
            assert time.monotonic() - revoked_at < 5


def test_an_idempotent_call_is_answered_once(live: Live) -> None:
    with live.client() as client:
        headers = {"idempotency-key": "once"}
        first = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        again = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        other = client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5}, headers=headers)
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert again.headers["x-airi-replayed"] == "true"
    assert other.status_code == 409


def test_a_caller_that_leaves_cancels_the_upstream(live: Live) -> None:
    slow = {**CHAT, "stream": True, "metadata": {"sim": "stall_after=2"}}
    with live.client() as client, client.stream("POST", "/v1/chat/completions", json=slow) as answer:
        next(answer.iter_lines())
        trace = answer.headers["x-airi-trace-id"]

    def record() -> dict[str, object] | None:
        with live.admin() as admin:
            found = admin.get(f"/admin/v1/traces/{trace}")
            return found.json() if found.status_code == 200 else None

    (call,) = wait_until(record)["calls"]
    assert (call["status"], call["error_code"]) == (499, "client_disconnected")
    assert call["usage_source"] == "estimated"
    assert call["output_tokens"] > 0


def test_a_role_that_only_reads_or_writes_policies_calls_no_model(live: Live) -> None:
    for role, status in (
        ("auditor", 403), ("policy_author", 403), ("policy_approver", 403), ("service", 200), ("developer", 200),
    ):  # fmt: skip
        with live.admin() as admin:
            made = admin.post("/admin/v1/keys", json={"tenant": "dev", "role": role}).json()
        with live.client(made["key"]) as client:
            answer = client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 1})
        assert answer.status_code == status, (role, answer.text)
        assert status == 200 or answer.json()["error"]["code"] == "role_not_allowed"


def test_unknown_paths_and_methods(live: Live) -> None:
    with live.client() as client:
        assert client.get("/v1/nothing").json()["error"]["code"] == "unknown_url"
        for method, path, allowed in (
            ("GET", "/v1/chat/completions", "POST"),
            ("DELETE", "/v1/models", "GET, HEAD"),
            ("POST", "/v1/models/sim/small", "GET, HEAD"),
            ("GET", "/v1/messages/count_tokens", "POST"),
        ):
            refused = client.request(method, path)
            assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
        for path in ("/v1/models", "/v1/models/fast", "/v1/responses/none", "/v1/workflows", "/v1/nothing"):
            assert client.get(path).headers["x-request-id"].startswith("req_")
        assert (
            client.post(
                "/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}
            ).status_code
            == 400
        )
        assert (
            client.post(
                "/v1/chat/completions", content=b"a=b", headers={"content-type": "text/plain"}
            ).status_code
            == 415
        )
        packed = gzip.compress(json.dumps(CHAT).encode())
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        refused = client.post("/v1/chat/completions", content=packed, headers=headers)
        assert (refused.status_code, "content-encoding" in refused.text) == (415, True)
    assert httpx.get(live.base + "/healthz", trust_env=False).json() == {"status": "ok"}
    assert httpx.get(live.base + "/readyz", trust_env=False).json()["status"] == "ready"
