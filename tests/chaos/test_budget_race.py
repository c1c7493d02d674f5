"""The race on one hard budget, short: ``python -m bench.budget_race`` holds the long one."""

from __future__ import annotations

import pytest

from bench.budget_race import Race, problems, run

pytestmark = pytest.mark.integration


def test_nobody_overspends_a_hard_budget() -> None:
    result = run(Race(processes=2, callers=16, budget_usd=1.2, kill_at=0.2))
    assert problems(result) == [], result
    assert result["gateway"]["killed"] != result["gateway"]["new"]
    assert result["beyond_promise_usd_micros"], "the upstream lied, and that is shown"
    assert result["books"]["excess_usd_micros"] > 0
    assert result["outcomes"]["left"] > 0
