"""Numbers that no arithmetic behind them can hold are refused where they are written, never when a call meets them."""

from __future__ import annotations

import pytest

from airi.config.loader import load_data
from airi.config.units import MOST, parse_duration, parse_usd
from airi.errors import ConfigError


@pytest.mark.parametrize("value", [1e25, "1e400", 1_000_000_001, "NaN", -1])
def test_money_beyond_what_redis_counts_exactly_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="US dollars"):
        parse_usd(value)


@pytest.mark.parametrize("value", [-1, 10**30, "99999999d", "9" * 400 + "s"])
def test_a_duration_that_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="between 0 and 36600d"):
        parse_duration(value)


def test_what_is_large_but_meant_is_taken() -> None:
    assert parse_usd(1_000_000_000) == 10**15
    assert parse_duration("36600d") == 36_600 * 86_400_000
    assert parse_duration(0) == 0


@pytest.mark.parametrize("field", ["requests_per_minute", "tokens_per_minute", "concurrent_calls"])
def test_a_limit_is_bounded(field: str) -> None:
    def tenant(value: int) -> list[dict[str, object]]:
        return [
            {
                "apiVersion": "airi/v1alpha1",
                "kind": "Tenant",
                "metadata": {"name": "t"},
                "limits": {field: value},
            }
        ]

    assert load_data(tenant(MOST))
    for wrong in (0, MOST + 1, 10**30):
        with pytest.raises(ConfigError, match=f"limits.{field}"):
            load_data(tenant(wrong))
