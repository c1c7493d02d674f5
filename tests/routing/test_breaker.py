"""The breaker: windows, pauses, probes. Time is handed in."""

from __future__ import annotations

from routing.breaker import Breaker


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    assert [breaker.failed(at) for _ in range(5)] == [False] * 4 + [True]
    return breaker


def test_it_opens_on_enough_failures_at_a_high_rate() -> None:
    breaker = opened()
    assert (breaker.state(1.0), breaker.allows(1.0), breaker.opens_at(1.0)) == ("open", False, 2.0)
    mostly_well = Breaker()
    for _ in range(20):
        mostly_well.succeeded(0.0)
    assert not any(mostly_well.failed(0.0) for _ in range(15))


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for second in (0.0, 0.1, 0.2, 0.3):
        breaker.failed(second)
    assert not breaker.failed(30.0)
    assert breaker.closed


def test_half_open_lets_one_probe_through() -> None:
    breaker = opened()
    assert breaker.state(2.5) == "half_open"
    assert breaker.allows(2.5)
    breaker.took(2.5)
    assert not breaker.allows(2.6)
    breaker.succeeded(3.0)
    assert breaker.closed
    assert breaker.allows(3.0)


def test_a_failed_probe_doubles_the_pause() -> None:
    breaker = opened()
    now = 2.5
    for pause in (4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        breaker.took(now)
        assert breaker.failed(now)
        assert breaker.opens_at(now) == now + pause
        now += pause


def test_an_abandoned_probe_frees_its_place() -> None:
    breaker = opened()
    breaker.took(2.5)
    breaker.abandoned()
    assert breaker.allows(2.6)
    breaker.took(2.6)
    assert breaker.allows(13.0), "a probe that never reports does not block for ever"


def test_recovery_seen_elsewhere_shortens_the_pause() -> None:
    breaker = opened()
    breaker.recovered(0.5)
    assert breaker.allows(0.5)
    assert not breaker.closed
