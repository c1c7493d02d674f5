"""Callers that leave, and engines that die, with a real vLLM."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.engines.calls import newest_record, record_of
from tests.engines.vllm_engine import Engine, Engines
from tests.support.live import Live, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
ENDLESS = {"ignore_eos": True}
MANY = 8_000
"""Ten seconds of work or more."""
PROMPTLY_S = 5.0
"""Tens of milliseconds, on a machine that is not overloaded."""


class Watch:
    """What an engine has done up to now, to compare with later."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._generated = engine.generated()
        self._finished = self._all_finished()

    def _all_finished(self) -> float:
        return self._engine.counter("vllm:request_success_total")

    def stops(self) -> None:
        """Check that the engine has nothing to do promptly, finished nothing, and no longer generates."""
        engine, left = self._engine, time.monotonic()
        wait_until(lambda: engine.load().running == 0, 20, 0.02)
        assert time.monotonic() - left < PROMPTLY_S
        generated = engine.generated()
        assert 0 < generated - self._generated < MANY, "it had begun, and has not worked to the end"
        time.sleep(0.5)  # what is shown is that nothing happens
        assert engine.generated() == generated
        assert self._all_finished() == self._finished


def test_a_stream_that_is_left_stops_the_engine(client: OpenAI, live: Live, idle: Engines) -> None:
    watch = Watch(idle.a)
    raw = client.chat.completions.with_raw_response.create(
        model="vllm/lone", messages=HELLO, max_tokens=MANY, stream=True, extra_body=ENDLESS
    )
    stream = raw.parse()
    for _ in range(20):
        next(stream)
    assert idle.a.load().running == 1
    stream.close()
    watch.stops()
    record = record_of(live, raw.headers["x-airi-trace-id"])
    assert record["status"] == 499
    assert 20 <= record["output_tokens"] < MANY, "what it has generated is accounted"
    assert record["cost_usd_micros"] > 0


def test_a_whole_call_that_is_left_stops_the_engine(client: OpenAI, live: Live, idle: Engines) -> None:
    watch = Watch(idle.a)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(
            model="vllm/lone", messages=HELLO, max_tokens=MANY, extra_body=ENDLESS, user="leaves"
        )
    watch.stops()
    assert newest_record(live, "leaves")["status"] == 499


@pytest.fixture
def mortal(idle: Engines) -> Iterator[Engine]:
    """An engine that may be killed; it is started again on its port."""
    yield idle.a
    if not idle.a.alive:
        idle.a.start()
        idle.a.wait_ready()


def test_an_engine_that_dies_in_mid_stream(client: OpenAI, live: Live, idle: Engines, mortal: Engine) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="vllm/lone", messages=HELLO, max_tokens=MANY, stream=True, extra_body=ENDLESS
    )
    stream = raw.parse()
    for _ in range(20):
        next(stream)
    mortal.kill()
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert not isinstance(broken.value, openai.APIConnectionError), "an error event, not a lost connection"
    record = record_of(live, raw.headers["x-airi-trace-id"])
    assert record["error_code"] == broken.value.code
    assert record["error_message"]
    assert record["attempts"][-1]["target"] == "lone/a"
    assert record["output_tokens"] >= 20

    # Nobody else can take it: refused clearly and at once.
    started = time.monotonic()
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="vllm/lone", messages=HELLO, max_tokens=4)
    assert refused.value.status_code in (502, 503)
    assert time.monotonic() - started < 5
    # Where there is another replica, callers notice nothing.
    for _ in range(6):
        answered = client.chat.completions.with_raw_response.create(
            model="vllm/tiny", messages=HELLO, max_tokens=4
        )
        assert record_of(live, answered.headers["x-airi-trace-id"])["target"] == "both/b"

    # Back on its address, it is used again without anybody's help.
    mortal.start()
    mortal.wait_ready()

    def served() -> bool:
        try:
            return bool(
                client.chat.completions.create(model="vllm/lone", messages=HELLO, max_tokens=4).choices
            )
        except openai.APIStatusError:
            return False

    wait_until(served, 30, 0.3)
