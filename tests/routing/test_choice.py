"""The choice of a replica: a pure function with reasons."""

from __future__ import annotations

from typing import Any

import pytest

from routing.choice import Features, ReplicaSnapshot, choose, explain


def replica(number: int, **fields: Any) -> ReplicaSnapshot:
    values: dict[str, Any] = {
        "refusing": "",
        "in_flight_tokens": 0,
        "in_flight_calls": 0,
        "pending_prefill": 0,
        "external_tokens": 0,
        "token_capacity": 10_000,
        "call_capacity": 10,
    }
    return ReplicaSnapshot(name=f"p/r{number}", bit=1 << number, **{**values, **fields})


def features(**fields: Any) -> Features:
    return Features(**{"input_tokens": 1_000, "cost": 1_200, "cached": {}, **fields})


def test_the_least_work_wins() -> None:
    choice = choose(features(), [replica(0, in_flight_tokens=500, in_flight_calls=1), replica(1)])
    assert [item.position for item in choice.ranked] == [1, 0]
    assert choice.reason == "least_work"


def test_a_cached_prefix_wins_until_the_load_outweighs_it() -> None:
    held = features(cached={1: 800})
    near = choose(held, [replica(0, in_flight_tokens=700, in_flight_calls=1), replica(1)])
    assert (near.ranked[0].position, near.reason) == (0, "cached_prefix")
    far = choose(held, [replica(0, in_flight_tokens=900, in_flight_calls=1), replica(1)])
    assert far.ranked[0].position == 1


def test_others_work_and_prompts_not_yet_prefilled_count() -> None:
    assert choose(features(), [replica(0, external_tokens=5), replica(1)]).ranked[0].position == 1
    assert choose(features(), [replica(0, pending_prefill=5), replica(1)]).ranked[0].position == 1


def test_equals_take_turns() -> None:
    replicas = [replica(number) for number in range(3)]
    firsts = {choose(features(turn=turn), replicas).ranked[0].position for turn in range(3)}
    assert firsts == {0, 1, 2}


def test_rejected_ones_say_why() -> None:
    choice = choose(
        features(tried=4),
        [
            replica(0, refusing="down"),
            replica(1, in_flight_calls=10),
            replica(2),
            replica(3, in_flight_calls=1, in_flight_tokens=9_000),
            replica(4),
        ],
    )
    assert [item.position for item in choice.ranked] == [4]
    assert {item.position: item.reason for item in choice.rejected} == {
        0: "down",
        1: "full",
        2: "already_tried",
        3: "full",
    }


def test_a_call_larger_than_the_capacity_may_run_alone() -> None:
    big = features(cost=50_000)
    assert choose(big, [replica(0)]).ranked
    assert not choose(big, [replica(0, in_flight_calls=1)]).ranked


@pytest.mark.parametrize(
    ("refusing", "position", "reason"),
    [
        (("down", "down"), 0, "fail_open"),
        (("breaker_open", "down"), 1, "fail_open"),
        (("cooling", "breaker_open"), 0, "fail_open"),
    ],
)
def test_when_all_are_doubted_the_doubt_is_not_believed(
    refusing: tuple[str, str], position: int, reason: str
) -> None:
    choice = choose(features(), [replica(n, refusing=why) for n, why in enumerate(refusing)])
    assert (choice.ranked[0].position, choice.reason) == (position, reason)


def test_open_breakers_are_believed() -> None:
    choice = choose(features(), [replica(0, refusing="breaker_open")])
    assert (list(choice.ranked), choice.reason) == ([], "no_room")


def test_those_that_failed_this_call_come_last() -> None:
    choice = choose(features(tried=3), [replica(0), replica(1), replica(2, refusing="breaker_open")])
    assert (len(choice.ranked), choice.reason) == (2, "only_tried_left")


def test_the_explanation_is_plain_data() -> None:
    replicas = [replica(0, refusing="down"), replica(1)]
    told = explain(choose(features(cached={2: 64}), replicas), replicas)
    assert told["candidates"][0] == {
        "replica": "p/r1",
        "score": 936,
        "cached_tokens": 64,
        "in_flight_tokens": 0,
        "in_flight_calls": 0,
        "external_tokens": 0,
    }
    assert told["rejected"] == [{"replica": "p/r0", "reason": "down"}]
