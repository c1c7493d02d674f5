"""Calls of ``/v1/responses`` to an upstream that speaks the Responses API itself, through a whole tree."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER, USAGE, delta, finish
from tests.support import responses_server as upstream
from tests.support.live import wait_until
from tests.support.responses_server import ResponsesServer

pytestmark = pytest.mark.integration
PATH = "/v1/responses"
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_ILL = """
apiVersion: airi/v1alpha1
kind: Provider
metadata: {{name: native-{name}}}
base_url: http://127.0.0.1:{port}/v1
responses: true
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: nat/{name}}}
versions: [{{name: v1, targets: [{{provider: native-{name}, model: upstream-model}}]}}]
price: {{input: 1, output: 2}}
retries: {{max_attempts: 1}}
---
"""
"""Each way of failing has a provider of its own: a breaker that one opens is not the other's matter."""
_BUNDLE = """
apiVersion: airi/v1alpha1
kind: Provider
metadata: {{name: native}}
base_url: http://127.0.0.1:{port}/v1
responses: true
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: nat/text}}
versions: [{{name: v1, targets: [{{provider: native, model: upstream-model}}]}}]
price: {{input: 1, output: 2}}
contract: {{vision: true}}
retries: {{max_attempts: 1}}
---
apiVersion: airi/v1alpha1
kind: Provider
metadata: {{name: native-ill}}
base_url: http://127.0.0.1:{port}/ill/v1
responses: true
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: nat/mixed}}
versions:
  - name: v1
    targets: [{{provider: native-ill, model: upstream-model}}, {{provider: recorder, model: recorded, weight: 0}}]
price: {{input: 1, output: 2}}
retries: {{max_attempts: 2, initial: 1ms}}
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: nat/fallback}}
versions: [{{name: v1, targets: [{{provider: native-ill, model: upstream-model}}]}}]
price: {{input: 1, output: 2}}
retries: {{max_attempts: 1}}
fallbacks: [rec/echo]
---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: nat/simple}}
versions: [{{name: v1, targets: [{{provider: native, model: upstream-model}}]}}]
price: {{input: 1, output: 2}}
contract: {{tools: false, json_schema: false}}
drop_params: true
---
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {{name: thrifty}}
budgets: [{{name: all, usd: 0.002, window: total}}]
---
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {{name: unbounded}}
---
apiVersion: airi/v1alpha1
kind: Policy
metadata: {{name: unbounded-elsewhere}}
scope: {{tenants: [unbounded]}}
when: '"elsewhere" in call.tags'
effect: route
route_to: rec/echo
reason: ELSEWHERE
---
apiVersion: airi/v1alpha1
kind: Policy
metadata: {{name: unbounded-no-word}}
scope: {{tenants: [unbounded]}}
stages: [response]
when: data.counts["word"] > 0
detectors: [{{id: words, words: [xyzzy]}}]
effect: deny
reason: MAGIC_WORD
message: Not that word.
---
apiVersion: airi/v1alpha1
kind: Policy
metadata: {{name: guarded-no-search}}
scope: {{tenants: [guarded]}}
when: '"web_search" in call.tools'
effect: deny
reason: NO_SEARCH
message: Not with a search.
"""


@pytest.fixture(scope="module")
def serving(door: Door) -> Iterator[ResponsesServer]:
    with ResponsesServer().serving() as server, door.live.admin() as admin:
        ill = "".join(_ILL.format(name=name, port=server.port) for name in ("failed", "error", "cut"))
        applied = admin.post(
            "/admin/v1/apply",
            content=ill + _BUNDLE.format(port=server.port),
            headers={"content-type": "application/yaml"},
        )
        assert applied.status_code == 200, applied.text
        with door.live.client() as client:
            wait_until(lambda: client.get("/v1/models/nat/simple").status_code == 200)
        yield server


def new_key(door: Door, tenant: str) -> str:
    with door.live.admin() as admin:
        key: str = admin.post("/admin/v1/keys", json={"tenant": tenant, "name": "k"}).json()["key"]
    with door.live.client(key) as client:
        wait_until(lambda: client.get("/v1/models").status_code == 200)
    return key


@pytest.fixture(scope="module")
def free(serving: ResponsesServer, door: Door) -> str:
    """A key of a tenant without a hard budget, which may use what the provider runs."""
    assert serving.port
    return new_key(door, "unbounded")


@pytest.fixture(autouse=True)
def server(serving: ResponsesServer, door: Door) -> ResponsesServer:
    serving.reset()
    door.recorder.seen.clear()
    door.recorder.answer = lambda body: (
        [delta(content="Chat."), finish("stop"), USAGE, b"[DONE]"] if body.get("stream") else ANSWER
    )
    return serving


def ask(door: Door, key: str | None = None, **body: Any) -> httpx.Response:
    return door.post(PATH, {"model": "nat/text", "input": "Hello?", **body}, key)


def events_in(text: str) -> list[dict[str, Any]]:
    """The events of a stream, in sequence, each under its own name; all that OpenAI has are in its form."""
    found = []
    for number, event in enumerate(text.removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        assert parsed["sequence_number"] == number
        if parsed["type"] != "response.of_the_future":
            _EVENT.validate_python(parsed)
        found.append(parsed)
    return found


def record_of(door: Door, answer: httpx.Response) -> dict[str, Any]:
    def found() -> Any:
        with door.live.admin() as admin:
            seen = admin.get(f"/admin/v1/traces/{answer.headers['x-airi-trace-id']}")
        return seen.status_code == 200 and seen.json()["calls"]

    call: dict[str, Any] = wait_until(found)[0]
    return call


def test_the_body_goes_on_as_it_came_and_the_answer_comes_back_so(
    door: Door, server: ResponsesServer, free: str
) -> None:
    server.output = [upstream.reasoning("Hm."), upstream.search("tides"), upstream.message("Yes.")]
    asked = {
        "model": "nat/text", "input": "Hello?", "instructions": "Be kind.", "truncation": "auto",
        "tools": [{"type": "web_search"}, {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "web_search"}, "of_the_future": {"deep": [1]}, "reasoning": {"effort": "low"},
        "max_output_tokens": 500, "metadata": {"a": "b"},
    }  # fmt: skip
    answer = door.post(PATH, asked, free)
    assert answer.status_code == 200, answer.text
    include = ["reasoning.encrypted_content"]
    assert server.last == {**asked, "model": "upstream-model", "store": False, "include": include}
    said = answer.json()
    expected = upstream.response(server.last, server.output)
    assert said["id"] != "resp_up"
    assert said == {**expected, "id": said["id"], "store": True}
    call = record_of(door, answer)
    assert (call["input_tokens"], call["cached_tokens"], call["output_tokens"], call["reasoning_tokens"]) == (
        40, 8, 20, 4,
    )  # fmt: skip
    assert (call["usage_source"], call["cost_usd_micros"]) == ("upstream", 40 * 1 + 20 * 2)
    assert (call["finish_reasons"], call["max_tokens"]) == (["stop"], 500)


def test_what_is_stored_is_read_listed_followed_and_deleted_here(door: Door, server: ResponsesServer) -> None:
    server.output = [
        upstream.reasoning("Hm."),
        upstream.message("I am fine."),
        upstream.call('{"city": "Rome"}'),
    ]
    first = ask(door, input="How are you?").json()
    with door.live.client() as client:
        assert client.get(f"{PATH}/{first['id']}").json() == first
        (item,) = client.get(f"{PATH}/{first['id']}/input_items").json()["data"]
        assert item["content"][0]["text"] == "How are you?"
        assert client.post(f"{PATH}/{first['id']}/cancel").status_code == 400
    server.output = [upstream.message("Sunny.")]
    result = {"type": "function_call_output", "call_id": "call_up", "output": "sun"}
    second = ask(door, input=[result], previous_response_id=first["id"], store=False)
    assert second.status_code == 200, second.text
    assert second.json()["previous_response_id"] == first["id"]
    sent = server.last
    assert "previous_response_id" not in sent
    assert sent["input"] == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "How are you?"}]},
        {name: value for name, value in upstream.reasoning("Hm.").items() if name != "status"},
        {
            "type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "I am fine.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "call_up", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        result,
    ]  # fmt: skip
    with door.live.client() as client:
        assert client.get(f"{PATH}/{second.json()['id']}").status_code == 404
        counted = client.post(
            f"{PATH}/input_tokens",
            json={"model": "nat/text", "input": "Hello there", "tools": [{"type": "web_search"}]},
        )
        assert counted.json()["input_tokens"] > 2, counted.text
        assert client.delete(f"{PATH}/{first['id']}").json()["deleted"] is True
    assert ask(door, previous_response_id=first["id"]).status_code == 404


def test_every_event_is_passed_on(door: Door, server: ResponsesServer) -> None:
    mark = {
        "type": "url_citation",
        "title": "t",
        "url": "https://a.example",
        "start_index": 0,
        "end_index": 2,
    }
    server.output = [
        upstream.reasoning("Let me see."), upstream.search("tides"), upstream.message("High tide.", [mark]),
        upstream.call('{"city": "Rome"}'),
    ]  # fmt: skip
    answer = ask(door, stream=True, of_the_future=1)
    assert server.last["of_the_future"] == 1
    assert "include_usage" not in json.dumps(server.last)
    found = events_in(answer.text)
    expected = list(upstream.events_of(server.last, server.output, "completed", server.size))
    told = {event["response"]["id"] for event in found if "response" in event}
    assert len(told) == 1
    for event, sent in zip(found, expected, strict=True):
        del event["sequence_number"]
        if "response" in sent:
            sent["response"] = {**sent["response"], "id": next(iter(told)), "store": True}
    assert found == expected
    with door.live.client() as client:
        assert client.get(f"{PATH}/{next(iter(told))}").json() == found[-1]["response"]
    call = record_of(door, answer)
    assert (call["output_tokens"], call["usage_source"], call["finish_reasons"]) == (
        20,
        "upstream",
        ["tool_calls"],
    )


@pytest.mark.parametrize("stream", [False, True])
def test_policies_see_what_is_asked_and_what_is_answered(
    door: Door, server: ResponsesServer, stream: bool
) -> None:
    address = "bob@example.org"
    server.output = [
        upstream.reasoning(f"It is {address}."), upstream.message(f"Write to {address}!"),
        upstream.call(json.dumps({"to": address})),
    ]  # fmt: skip
    history = [
        {"role": "user", "content": [{"type": "input_text", "text": "ann@example.com"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"to": "ann@example.com"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sent to ann@example.com"},
        {
            "type": "mcp_call",
            "id": "m",
            "server_label": "s",
            "name": "f",
            "arguments": "{}",
            "output": "ann@example.com",
        },
        {"role": "user", "content": "ann@example.com"},
    ]
    answer = ask(door, door.guarded, input=history, instructions="Not ann@example.com!", stream=stream)
    assert answer.status_code == 200, answer.text
    assert "example" not in json.dumps(server.last)
    assert json.dumps(server.last).count("[EMAIL]") == 6
    assert "example" not in answer.text
    said = events_in(answer.text)[-1]["response"] if stream else answer.json()
    assert said["output"][1]["content"][0]["text"] == "Write to [EMAIL]!"
    assert json.loads(said["output"][2]["arguments"]) == {"to": "[EMAIL]"}
    with door.live.client(door.guarded) as client:
        assert client.get(f"{PATH}/{said['id']}").json() == said
    call = record_of(door, answer)
    assert call["detections"] == {"pii.email": 9}
    outcomes = {decision["stage"]: decision["outcome"] for decision in call["decisions"]}
    assert (outcomes["policy"], outcomes["response_policy"]) == ("redacted", "redacted")


def test_a_policy_may_deny_words_and_the_providers_own_tools(door: Door, server: ResponsesServer) -> None:
    assert ask(door, door.guarded, input="say xyzzy").status_code == 403
    denied = ask(door, door.guarded, tools=[{"type": "web_search"}])
    assert (denied.status_code, denied.json()["error"]["message"]) == (403, "Not with a search.")
    assert server.seen == []


def test_a_policy_may_send_a_call_to_a_target_that_speaks_chat_alone(
    door: Door, server: ResponsesServer, free: str
) -> None:
    tags = {"x-airi-tags": "elsewhere"}
    answer = door.post(PATH, {"model": "nat/text", "input": "Hello?"}, free, **tags)
    assert answer.status_code == 200, answer.text
    assert door.recorder.last["messages"] == [{"role": "user", "content": "Hello?"}]
    body = {"model": "nat/text", "input": "x", "tools": [{"type": "web_search"}]}
    refused = door.post(PATH, body, free, **tags)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools.0.type")
    assert (len(door.recorder.seen), server.seen) == (1, [])


@pytest.mark.parametrize("stream", [False, True])
def test_a_policy_may_stop_an_answer(door: Door, server: ResponsesServer, free: str, stream: bool) -> None:
    server.output = [upstream.message("All is well, and then xyzzy comes.")]
    answer = ask(door, free, stream=stream)
    assert "xyzzy" not in answer.text
    assert "Not that word." in answer.text
    if not stream:
        assert answer.status_code == 403
        return
    found = events_in(answer.text)
    assert "All is well" in "".join(event.get("delta", "") for event in found)
    assert found[-1]["type"] == "response.failed"
    with door.live.client(free) as client:
        assert client.get(f"{PATH}/{found[-1]['response']['id']}").status_code == 404
    assert record_of(door, answer)["status"] == 403


def test_a_hard_budget_lowers_the_output_and_refuses_what_it_cannot_answer_for(
    door: Door, server: ResponsesServer
) -> None:
    key = new_key(door, "thrifty")
    refused = ask(door, key, tools=[{"type": "web_search"}])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    assert server.seen == []
    answer = ask(door, key, max_output_tokens=4_000)
    assert answer.status_code == 200, answer.text
    assert 0 < server.last["max_output_tokens"] < 4_000
    assert "max_tokens" not in server.last
    assert record_of(door, answer)["max_tokens"] == server.last["max_output_tokens"]
    assert ask(door, key).status_code == 200
    assert server.last["max_output_tokens"] > 0


def test_each_target_is_sent_the_form_that_it_speaks(door: Door, server: ResponsesServer) -> None:
    server.status = 500
    for model in ("nat/mixed", "nat/fallback"):
        for stream in (False, True):
            answer = ask(door, model=model, instructions="Be kind.", stream=stream)
            assert answer.status_code == 200, answer.text
            assert server.last["input"] == "Hello?"
            assert door.recorder.last["messages"] == [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello?"},
            ]
            said = events_in(answer.text)[-1]["response"] if stream else answer.json()
            assert said["status"] == "completed"
            with door.live.client() as client:
                assert client.get(f"{PATH}/{said['id']}").json() == said
    # The next turn may go where the one before did not.
    server.status = 200
    assert ask(door, previous_response_id=said["id"]).status_code == 200
    assert [item["role"] for item in server.last["input"]] == ["user", "assistant", "user"]


def test_what_only_the_native_form_can_say_never_goes_to_the_others(
    door: Door, server: ResponsesServer, free: str
) -> None:
    server.status = 500
    for model in ("nat/mixed", "nat/fallback"):
        answer = ask(door, free, model=model, tools=[{"type": "web_search"}])
        assert answer.status_code in (500, 503), answer.text  # 503: its breaker is open by now
        assert door.recorder.seen == []


def test_what_a_model_cannot_do_is_left_out_of_the_native_form_too(
    door: Door, server: ResponsesServer, free: str
) -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    answer = ask(
        door,
        free,
        model="nat/simple",
        tools=[{"type": "web_search"}],
        text={"format": form, "verbosity": "low"},
    )
    assert answer.status_code == 200, answer.text
    assert "tools" not in server.last
    assert server.last["text"] == {"verbosity": "low"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True), ("conversation", "conv_1"), ("max_output_tokens", 0), ("stream", "yes"),
        ("input", [{"type": "item_reference", "id": "msg_1"}]), ("tools", 7), ("include", 7),
    ],
)  # fmt: skip
def test_what_would_leave_state_at_the_provider_is_refused_by_name(
    door: Door, server: ResponsesServer, field: str, value: Any
) -> None:
    answer = ask(door, **{field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(field)
    assert server.seen == []


@pytest.mark.parametrize("ending", ["failed", "error", "cut"])
@pytest.mark.parametrize("guarded", [False, True])
def test_a_stream_that_fails_says_so_and_is_not_stored(
    door: Door, server: ResponsesServer, ending: Any, guarded: bool
) -> None:
    server.ending = ending
    server.output = [upstream.message("mail bob@example.org and more")]
    answer = ask(door, door.guarded if guarded else None, model=f"nat/{ending}", stream=True)
    assert answer.status_code == 200, answer.text
    found = events_in(answer.text)
    assert [event["type"] for event in found].count("response.failed") == 1
    last = found[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["id"] == found[0]["response"]["id"]
    assert last["response"]["error"]["message"]
    assert not guarded or "bob@example.org" not in answer.text
    with door.live.client(door.guarded if guarded else None) as client:
        assert client.get(f"{PATH}/{last['response']['id']}").status_code == 404
    call = record_of(door, answer)
    assert call["status"] == 502
    assert call["error_code"].startswith("upstream_")


def test_an_answer_that_is_cut_at_its_limit_is_incomplete(door: Door, server: ResponsesServer) -> None:
    server.ending = "incomplete"
    answer = ask(door, stream=True)
    assert events_in(answer.text)[-1]["type"] == "response.incomplete"
    assert record_of(door, answer)["finish_reasons"] == ["length"]


def test_a_caller_that_leaves_ends_the_upstreams_work(door: Door, server: ResponsesServer) -> None:
    server.hold = True
    server.output = [upstream.message("A long story. " * 20)]
    with (
        door.live.client() as client,
        client.stream("POST", PATH, json={"model": "nat/text", "input": "x", "stream": True}) as answer,
    ):
        assert next(answer.iter_bytes()).startswith(b"event: response.created")
    since = time.monotonic()
    assert server.left.wait(5)
    assert time.monotonic() - since < 1
    call = record_of(door, answer)
    assert (call["status"], call["usage_source"]) == (499, "estimated")


def test_an_idempotency_key_repeats_the_native_answer(door: Door, server: ResponsesServer) -> None:
    for stream in (False, True):
        body = {"model": "nat/text", "input": "x", "stream": stream}
        first = door.post(PATH, body, **{"idempotency-key": f"native-{stream}-{server.port}"})
        again = door.post(PATH, body, **{"idempotency-key": f"native-{stream}-{server.port}"})
        assert again.headers["x-airi-replayed"] == "true"
        assert again.text == first.text
    assert len(server.seen) == 2


class Place(BaseModel):
    city: str


def test_openais_own_client(door: Door, server: ResponsesServer, free: str) -> None:
    with OpenAI(api_key=free, base_url=f"{door.live.base}/v1", max_retries=0) as client:
        server.output = [upstream.message('{"city": "Rome"}')]
        parsed = client.responses.parse(model="nat/text", input="Where?", text_format=Place)
        assert parsed.output_parsed == Place(city="Rome")
        assert server.last["text"]["format"]["type"] == "json_schema"
        with client.responses.stream(model="nat/text", input="Where?", text_format=Place) as stream:
            kinds = {event.type for event in stream}
            assert stream.get_final_response().output_parsed == Place(city="Rome")
        assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
        server.output = [upstream.call('{"city": "Rome"}')]
        called = client.responses.create(
            model="nat/text", input="Weather?", tools=[{"type": "web_search"}], reasoning={"effort": "low"}
        )
        assert called.output[0].type == "function_call"
        assert client.responses.retrieve(called.id).output == called.output
        server.output = [upstream.message("Sunny.")]
        result = client.responses.create(
            model="nat/text",
            previous_response_id=called.id,
            input=[{"type": "function_call_output", "call_id": "call_up", "output": "sun"}],
        )
        assert result.output_text == "Sunny."
        assert [item["type"] for item in server.last["input"]] == [
            "message", "function_call", "function_call_output",
        ]  # fmt: skip
