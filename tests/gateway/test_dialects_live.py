"""Every model route through a whole tree: translated, forwarded, judged, counted and written down."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from gateway.operations import OPERATIONS
from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER, USAGE, delta, finish
from tests.routing import bedrock_server, gemini_server
from tests.support.live import wait_until

pytestmark = pytest.mark.integration
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "TEXT"}]},
    "/v1/completions": {"prompt": "TEXT"},
    "/v1/embeddings": {"input": "TEXT"},
    "/v1/messages": {"max_tokens": 50, "messages": [{"role": "user", "content": "TEXT"}]},
    "/v1/responses": {"input": "TEXT"},
    "/v1/moderations": {"input": "TEXT"},
}


def saying(path: str, text: str, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(json.dumps(BODIES[path]).replace("TEXT", text))
    return {"model": "rec/echo", **body, **more}


@pytest.fixture(autouse=True)
def fresh(door: Door) -> None:
    door.recorder.seen.clear()
    door.recorder.answer = lambda _: ANSWER


def trace(door: Door, trace_id: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        with door.live.admin() as admin:
            answer = admin.get(f"/admin/v1/traces/{trace_id}")
        return answer.json()["calls"][0] if answer.status_code == 200 and answer.json()["calls"] else None

    call: dict[str, Any] = wait_until(found)
    return call


def test_every_model_route_is_known_to_this_test() -> None:
    assert set(BODIES) == set(OPERATIONS)


@pytest.mark.parametrize("path", BODIES)
def test_admission_and_policies_stand_before_every_route(door: Door, path: str) -> None:
    answer = door.post(path, saying(path, "write to ann@example.com"), door.guarded)
    assert answer.status_code == 200, answer.text
    assert "ann@example.com" not in json.dumps(door.recorder.last)
    assert "[EMAIL]" in json.dumps(door.recorder.last)
    call = trace(door, answer.headers["x-airi-trace-id"])
    stages = {decision["stage"]: decision["outcome"] for decision in call["decisions"]}
    assert stages["auth"] == "allowed"
    assert stages["limits"] == "allowed"
    assert stages["policy"] == "redacted"
    assert call["route"] == path
    assert call["reservation_id"]
    denied = door.post(path, saying(path, "say xyzzy"), door.guarded)
    assert denied.status_code == 403, denied.text
    assert "Not that word." in denied.text
    assert len(door.recorder.seen) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_redacted_in_every_dialect(door: Door, path: str, stream: bool) -> None:
    said = {"role": "assistant", "content": "It is bob@example.org.", "reasoning_content": "bob@example.org?"}
    if stream:
        pieces = [delta(content="It is bob@exa"), delta(content="mple.org."), finish("stop"), USAGE]
        door.recorder.answer = lambda _: [*pieces, b"[DONE]"]
    else:
        choice = {"index": 0, "message": said, "finish_reason": "stop"}
        door.recorder.answer = lambda _: {**ANSWER, "choices": [choice]}
    answer = door.post(path, saying(path, "who?", stream=stream), door.guarded)
    assert answer.status_code == 200, answer.text
    assert "example.org" not in answer.text
    assert "EMAIL" in answer.text


@pytest.mark.parametrize("path", BODIES)
def test_one_key_gives_one_answer_on_every_route(door: Door, path: str) -> None:
    headers = {"idempotency-key": f"once-{path}"}
    first = door.post(path, saying(path, "hi"), **headers)
    again = door.post(path, saying(path, "hi"), **headers)
    assert first.status_code == 200, first.text
    assert again.content == first.content
    assert again.headers["x-airi-replayed"] == "true"
    assert len(door.recorder.seen) == 1
    assert door.post(path, saying(path, "other"), **headers).status_code == 409


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_usage_and_cost_are_counted_in_streams_of_every_dialect(door: Door, path: str) -> None:
    door.recorder.answer = lambda _: [delta(content="Yes."), finish("stop"), USAGE, b"[DONE]"]
    answer = door.post(path, saying(path, "hi", stream=True))
    assert door.recorder.last["stream_options"] == {"include_usage": True}
    call = trace(door, answer.headers["x-airi-trace-id"])
    assert (call["input_tokens"], call["output_tokens"], call["usage_source"]) == (5, 2, "upstream")
    assert call["cost_usd_micros"] == 9
    assert call["finish_reasons"] == ["stop"]


def test_a_stream_cut_short_is_an_error_in_every_dialect(door: Door) -> None:
    door.recorder.answer = lambda _: [delta(content="Yes")]
    message = door.post("/v1/messages", saying("/v1/messages", "hi", stream=True))
    assert 'event: error\ndata: {"type":"error","error":{"type":"api_error"' in message.text
    assert "message_stop" not in message.text
    response = door.post("/v1/responses", saying("/v1/responses", "hi", stream=True))
    last = json.loads(response.text.strip().split("\n")[-1].removeprefix("data: "))
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"


def test_what_the_gateway_does_not_know_passes_unchanged(door: Door) -> None:
    odd = {
        "guided_choice": ["a", "b"],
        "top_k": 3,
        "logit_bias": {"5": -100},
        "vendor": {"deep": [1, 2.5, None, {"é": "ü"}]},
        "seed": 7,
    }
    for path in BODIES:
        if path != "/v1/moderations":
            assert door.post(path, saying(path, "hi", **odd)).status_code == 200
            assert {name: door.recorder.last.get(name) for name in odd} == odd, path
    message = {"role": "user", "content": "hi", "name": "ann", "vendor_field": 1}
    assert door.post("/v1/chat/completions", {"model": "rec/echo", "messages": [message]}).status_code == 200
    assert door.recorder.last["messages"] == [message]
    assert door.recorder.seen[-1][0] == "/v1/chat/completions"
    assert "authorization" not in door.recorder.seen[-1][1]


def test_the_callers_trace_goes_on_upstream(door: Door) -> None:
    path, trace = "/v1/chat/completions", "4bf92f3577b34da6a3ce929d0e0e4736"
    parent, state = f"00-{trace}-00f067aa0ba902b7-01", "vendor=a,other=b"
    for sent, passed in (
        ({"traceparent": parent, "tracestate": state}, state),
        ({"traceparent": parent, "tracestate": "v=" + "x" * 600}, None),
        ({"tracestate": state}, None),  # says nothing without the trace that it belongs to
    ):
        assert door.post(path, saying(path, "hi"), **sent).status_code == 200
        headers = door.recorder.seen[-1][1]
        assert headers.get("tracestate") == passed
        assert ("traceparent" in sent) == (trace in headers["traceparent"])
        assert "00f067aa0ba902b7" not in headers["traceparent"]


def test_what_the_target_cannot_do_is_refused_by_name_or_dropped(door: Door) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    path = "/v1/chat/completions"
    refused = door.post(path, saying(path, "hi", model="rec/narrow", tools=[tool]))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"
    assert not door.recorder.seen
    dropped = door.post(path, saying(path, "hi", model="rec/drop", tools=[tool]))
    assert dropped.status_code == 200
    assert "tools" not in door.recorder.last
    refused = door.post(path, saying(path, "hi", model="claude/text", logit_bias_of_mine=1))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "logit_bias_of_mine"
    assert door.post(path, saying(path, "hi", model="claude/drop", logit_bias_of_mine=1)).status_code == 200


def test_an_image_is_refused_where_the_model_sees_none(door: Door) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AA=="}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "?"}]
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    refused = door.post("/v1/messages", {"model": "rec/narrow", **body})
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert door.post("/v1/messages", {"model": "rec/echo", **body}).status_code == 200
    assert door.recorder.last["messages"][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,AA=="


def test_an_openai_client_on_anthropics_model(door: Door) -> None:
    path = "/v1/chat/completions"
    whole = door.post(path, saying(path, "hi", model="claude/text"))
    assert whole.json()["choices"][0]["message"]["content"] == "hello", whole.text
    assert door.anthropic.seen[-1].path == "/v1/messages"
    assert door.anthropic.seen[-1].headers["x-api-key"] == "sk-upstream"
    streamed = door.post(path, saying(path, "hi", model="claude/text", stream=True))
    assert "hel" in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    limited = door.post(path, saying(path, "hi", model="claude/429"))
    assert limited.status_code == 429
    assert limited.headers["retry-after"] == "7"
    assert "sk-upstream" not in limited.text


@pytest.mark.parametrize("place", ["gemini", "bedrock"])
def test_clients_of_both_kinds_on_geminis_and_bedrocks_models(door: Door, place: str) -> None:
    path = "/v1/chat/completions"
    whole = door.post(path, saying(path, "hi", model=f"{place}/text"))
    assert whole.json()["choices"][0]["message"]["content"] == "hello", whole.text
    streamed = door.post(path, saying(path, "hi", model=f"{place}/text", stream=True))
    assert "hel" in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in streamed.text, "the caller did not ask for it"
    call = trace(door, streamed.headers["x-airi-trace-id"])
    price = next(decision["details"] for decision in call["decisions"] if decision["stage"] == "price")
    assert (price["input_tokens"], price["cached_tokens"]) == (16, 4)
    assert price["usage_source"] == "upstream"
    uncounted = door.post(path, saying(path, "hi", model=f"{place}/uncounted", stream=True))
    assert "hel" in uncounted.text
    call = trace(door, uncounted.headers["x-airi-trace-id"])
    price = next(decision["details"] for decision in call["decisions"] if decision["stage"] == "price")
    assert price["usage_source"] == "estimated"
    assert price["output_tokens"] > 0
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    anthropics = door.post("/v1/messages", saying("/v1/messages", "hi", model=f"{place}/text", tools=[tool]))
    block = anthropics.json()["content"][0]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {"city": "Oslo"})
    refused = door.post(path, saying(path, "hi", model=f"{place}/text", logit_bias={"1": 2}))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "logit_bias"
    cut = door.post(path, saying(path, "hi", model=f"{place}/cut", stream=True))
    assert "[DONE]" not in cut.text
    assert "upstream_truncated" in cut.text


@pytest.mark.parametrize("place", ["gemini", "bedrock"])
def test_a_provider_that_repeats_our_keys_gives_none_away(door: Door, place: str) -> None:
    path = "/v1/chat/completions"
    refused = door.post(path, saying(path, "hi", model=f"{place}/401"))
    assert refused.status_code == 502
    assert refused.json()["error"]["code"] == "upstream_refused"
    call = trace(door, refused.headers["x-airi-trace-id"])
    with door.live.admin() as admin:
        stored = admin.get(f"/admin/v1/providers/{place}").text
    files = [
        path.read_bytes() for path in door.live.home.rglob("*") if path.is_file() and path.stat().st_size
    ]
    for secret in (gemini_server.KEY, bedrock_server.ACCESS_KEY, bedrock_server.SECRET_KEY):
        assert secret not in refused.text + json.dumps(call) + door.live.log() + stored
        assert not any(secret.encode() in data for data in files), "neither in a log nor in a database"


def test_anthropics_form_all_the_way(door: Door) -> None:
    path = "/v1/messages"
    whole = door.post(path, saying(path, "hi", model="claude/text"))
    assert whole.json()["content"][0]["text"] == "hello", whole.text
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    called = door.post(path, saying(path, "hi", model="claude/text", tools=[tool]))
    assert called.json()["content"][0] == {
        "type": "tool_use",
        "id": "toolu_1",
        "name": "weather",
        "input": {"city": "Oslo"},
    }
    limited = door.post(path, saying(path, "hi", model="claude/429"))
    assert limited.status_code == 429
    assert limited.json()["type"] == "error"
    assert limited.json()["error"]["type"] == "rate_limit_error"
    assert limited.headers["request-id"].startswith("req_")


def test_errors_have_the_dialects_form_from_the_first_check_on(door: Door) -> None:
    with door.live.client("airi_nobody_0000") as client:
        unknown = client.post("/v1/messages", json=saying("/v1/messages", "hi"))
    assert unknown.status_code == 401
    assert unknown.json()["error"]["type"] == "authentication_error"
    with door.live.client() as client:
        wrong = client.get("/v1/messages")
        assert wrong.status_code == 405
        assert wrong.json()["type"] == "error"
        assert client.post("/v1/messages", content=b"{").json()["error"]["type"] == "invalid_request_error"
        counted = client.post("/v1/messages/count_tokens", json={"model": "nope", "messages": []})
        assert counted.status_code == 404
        assert counted.json()["error"]["type"] == "not_found_error"


def test_stored_responses_can_be_read_listed_followed_and_deleted(door: Door) -> None:
    path = "/v1/responses"
    first = door.post(path, saying(path, "first"), door.red).json()
    second = door.post(path, saying(path, "second", previous_response_id=first["id"]), door.red).json()
    assert [message["content"] for message in door.recorder.last["messages"]] == ["first", "Yes.", "second"]
    with door.live.client(door.red) as red, door.live.client(door.blue) as blue:
        assert red.get(f"{path}/{second['id']}").json() == second
        listed = red.get(f"{path}/{second['id']}/input_items", params={"order": "asc"}).json()
        assert [item["content"][0]["text"] for item in listed["data"]] == ["second"]
        for other in (blue, door.live.client()):
            assert other.get(f"{path}/{second['id']}").status_code == 404
        foreign = door.post(path, saying(path, "x", previous_response_id=first["id"]), door.blue)
        assert foreign.status_code == 404
        assert foreign.json()["error"]["code"] == "previous_response_not_found"
        assert red.post(f"{path}/{second['id']}/cancel").status_code == 400
        counted = red.post(
            f"{path}/input_tokens",
            json={"model": "rec/echo", "input": "more", "previous_response_id": second["id"]},
        ).json()
        assert counted["input_tokens"] > 10
        assert counted["estimated"] is True
        assert red.delete(f"{path}/{first['id']}").json()["deleted"] is True
        assert red.get(f"{path}/{first['id']}").status_code == 404
    broken = door.post(path, saying(path, "x", previous_response_id=second["id"]), door.red)
    assert broken.status_code == 404
    unstored = door.post(path, saying(path, "x", store=False), door.red).json()
    with door.live.client(door.red) as red:
        assert red.get(f"{path}/{unstored['id']}").status_code == 404


def test_a_followed_response_counts_what_it_refers_to(door: Door) -> None:
    path = "/v1/responses"
    first = door.post(path, saying(path, "word " * 4_000)).json()
    second = door.post(path, saying(path, "short", previous_response_id=first["id"]))
    limits = next(
        decision
        for decision in trace(door, second.headers["x-airi-trace-id"])["decisions"]
        if decision["stage"] == "limits"
    )
    assert limits["details"]["estimated_tokens"] > 4_000


def test_moderations_come_from_the_detectors(door: Door) -> None:
    body = {"input": ["nothing here", "mail ann@example.com", "key sk-proj-" + "a1B2" * 12]}
    answer = door.post("/v1/moderations", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "airi/detectors"
    results = answer.json()["results"]
    assert [result["flagged"] for result in results] == [False, True, True]
    assert results[1]["categories"]["pii.email"] is True
    assert results[1]["category_scores"]["pii.email"] >= 0.5
    masked = door.post("/v1/moderations", {"input": "mail ann@example.com"}, door.guarded).json()
    assert masked["results"][0]["categories"]["pii.email"] is True
    picture = {"input": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}
    assert door.post("/v1/moderations", picture).status_code == 400


def test_completions_stream_and_answer(door: Door) -> None:
    body = {"model": "sim/small", "prompt": "Once upon", "max_tokens": 8}
    whole = door.post("/v1/completions", body).json()
    assert whole["object"] == "text_completion"
    assert whole["choices"][0]["text"]
    assert whole["usage"]["completion_tokens"] == 8
    streamed = door.post("/v1/completions", {**body, "stream": True})
    chunks = [line[6:] for line in streamed.text.split("\n") if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks[:-1])
    assert text == whole["choices"][0]["text"]
    tokens = door.post("/v1/completions", {**body, "prompt": [[1, 2, 3], [4, 5]]}).json()
    assert [choice["index"] for choice in tokens["choices"]] == [0, 1]


def test_embeddings_in_all_their_forms(door: Door) -> None:
    def embed(**fields: Any) -> list[Any]:
        answer = door.post("/v1/embeddings", {"model": "sim/embed", **fields})
        assert answer.status_code == 200, answer.text
        return [item["embedding"] for item in answer.json()["data"]]

    plain = embed(input="a cat", dimensions=64)[0]
    assert len(plain) == 64
    coded = base64.b64decode(embed(input="a cat", dimensions=64, encoding_format="base64")[0])
    assert struct.unpack("<64f", coded) == pytest.approx(plain, abs=1e-6)
    assert len(embed(input=["a", "b"])) == 2
    assert len(embed(input=[1, 2, 3])) == 1
    assert len(embed(input=[[1, 2], [3]])) == 2
