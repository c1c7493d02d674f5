"""Short forms of what ``make lab`` and the replica's kill measure."""

from __future__ import annotations

import asyncio

from bench.lab import Lab, cases
from bench.replica_kill import run


def test_the_gap_between_overloading_tenants_stays_within_the_bound() -> None:
    for case in cases(scale=0.1):
        result = Lab(case, seed=3).run()
        assert result.both_waiting_s > 20, case
        if case.policy == "vtc":
            assert result.gap <= result.bound / 2, result
            assert all(0.4 < share < 0.6 for share in result.share), result
    first = next(case for case in cases() if case.policy == "fcfs")
    assert not Lab(first, seed=3).run().held, "the load is one that needs a fair queue"


def test_a_replica_killed_under_load_costs_no_caller_an_error() -> None:
    outcome = asyncio.run(run(calls=100, replicas=2, delay_s=0.05))
    assert outcome.on_victim_at_kill >= 30
    assert (outcome.errors_before_first_byte, outcome.errors) == (0, {})
    assert outcome.answered + outcome.streams_broken_after_first_byte == 100
