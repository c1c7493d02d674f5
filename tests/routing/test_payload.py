"""What of a body changes on its way up."""

from __future__ import annotations

import msgspec

from routing.payload import Payload


def test_only_the_model_changes() -> None:
    body = {
        "model": "alias",
        "messages": [{"role": "user", "content": "hä\u2028"}],
        "unknown": {"x": [1.0, 10**30, None]},
    }
    sent = msgspec.json.decode(Payload(body).encode("there"))
    assert sent == {**body, "model": "there"}
    assert body["model"] == "alias"


def test_overrides_replace_and_add_and_fields_are_dropped() -> None:
    payload = Payload({"model": "a", "max_tokens": 9, "tools": []})
    sent = msgspec.json.decode(
        payload.encode("b", {"max_tokens": 5, "stream_options": {"include_usage": True}}, ("tools",))
    )
    assert sent == {"model": "b", "max_tokens": 5, "stream_options": {"include_usage": True}}


def test_bytes_pass_only_when_nothing_differs() -> None:
    raw = b'{ "model":"m" }'
    payload = Payload({"model": "m"}, raw)
    assert payload.encode("m") is raw
    assert payload.encode("n") == b'{"model":"n"}'
    assert payload.encode("m", {"a": 1}) == b'{"model":"m","a":1}'
    assert payload.encode("m") is raw


def test_a_retry_encodes_nothing_again() -> None:
    payload = Payload({"model": "a"})
    overrides = {"max_tokens": 1}
    assert payload.encode("b", overrides) is payload.encode("b", overrides)
