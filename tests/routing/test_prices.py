"""Prices: the map of the installed litellm, tiers, rounding up."""

from __future__ import annotations

import subprocess
import sys

from routing.prices import PriceMap, Rates, TokenPrice

PRICES = PriceMap.load()


def test_the_map_prices_known_models() -> None:
    price = PRICES.price("gpt-4o")
    assert price is not None
    assert price.rates == (Rates(0, 2_500_000, 10_000_000, 1_250_000, 2_500_000),)
    assert price.cost_usd_micros(1_000_000, 1_000_000) == 12_500_000
    assert price.cost_usd_micros(1_000, 0, 400) == 600 * 2.5 + 400 * 1.25
    assert price.cost_usd_micros(1_000, 0, priority=True) == 4_250
    assert (price.worst_input, price.worst_output) == (4_250_000, 17_000_000), (
        "a caller may ask for the dear tier"
    )


def test_writing_a_cache_and_long_prompts_cost_more() -> None:
    claude = PRICES.price("claude-sonnet-4-5", "litellm:anthropic")
    assert claude is not None
    assert claude.cost_usd_micros(1_000, 0, 100, 500) == 400 * 3 + 100 * 0.3 + 500 * 3.75
    assert claude.worst_input == 3_750_000
    gemini = PRICES.price("gemini-2.5-pro", "litellm:gemini")
    assert gemini is not None
    assert gemini.cost_usd_micros(200_000, 0) == 250_000
    assert gemini.cost_usd_micros(200_001, 0) == 500_003


def test_what_has_no_token_price_has_none() -> None:
    assert PRICES.price("no-such-model") is None
    assert PRICES.price("sample_spec") is None or PRICES.price("sample_spec").worst_output == 0  # type: ignore[union-attr]
    assert PriceMap({}).price("gpt-4o") is None


def test_costs_are_rounded_up() -> None:
    price = TokenPrice((Rates(0, 1, 1, 1, 1),), "target")
    assert price.cost_usd_micros(1, 0) == 1
    assert price.cost_usd_micros(0, 0) == 0
    assert price.cost_usd_micros(5, 0, 99, 99) == 1, "more cached than there was is not cheaper than free"


def test_the_whole_room_starts_without_what_is_heavy() -> None:
    code = (
        "import sys; from routing.router import Router; from routing.prices import PriceMap; PriceMap.load().price('gpt-4o');"
        "sys.exit(bool({'litellm', 'httpx', 'redis'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
