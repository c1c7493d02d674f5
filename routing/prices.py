"""Prices of tokens, and litellm's price map read as a file, without importing litellm.

Rates are micro-dollars per million tokens, as in :mod:`airi.config.kinds`; costs are whole micro-dollars, rounded up,
so that a sum of settled costs is never below what was spent.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from airi.config.kinds import Price

_MILLION = 1_000_000
_USD_PER_TOKEN = 1e12
"""From dollars a token (the map) to micro-dollars per million tokens (ours)."""
_MAP_FILE = "model_prices_and_context_window_backup.json"
_TIER = re.compile(r"^input_cost_per_token_above_(\d+)k_tokens$")
_DIALECT_PREFIXES = {
    "anthropic": ("anthropic/",),
    "litellm:gemini": ("gemini/",),
    "litellm:bedrock": ("bedrock/",),
}


class Rates(msgspec.Struct, frozen=True, gc=False):
    """What tokens cost once a request's input exceeds ``above`` tokens. Micro-dollars per million tokens."""

    above: int
    input: int
    output: int
    cached_input: int
    cache_write: int


class TokenPrice(msgspec.Struct, frozen=True):
    """What a target charges. ``rates`` and ``priority`` are in rising order of ``above``; ``source`` says who said so."""

    rates: tuple[Rates, ...]
    source: str
    priority: tuple[Rates, ...] = ()

    @property
    def worst_input(self) -> int:
        """The dearest rate that any input token can be charged at: what a hard budget must hold."""
        return max(max(r.input, r.cache_write) for r in self.rates + self.priority)

    @property
    def worst_output(self) -> int:
        """The dearest rate that any output token can be charged at."""
        return max(r.output for r in self.rates + self.priority)

    def cost_usd_micros(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
        *,
        priority: bool = False,
    ) -> int:
        """Return the cost of a call. ``cached_tokens`` and ``cache_write_tokens`` are parts of ``input_tokens``."""
        table = self.priority if priority and self.priority else self.rates
        rates = table[0]
        for tier in table[1:]:
            if input_tokens > tier.above:
                rates = tier
        cached = min(cached_tokens, input_tokens)
        written = min(cache_write_tokens, input_tokens - cached)
        total = (
            (input_tokens - cached - written) * rates.input
            + cached * rates.cached_input
            + written * rates.cache_write
            + output_tokens * rates.output
        )
        return -(-total // _MILLION)


def dearest(prices: list[TokenPrice | None]) -> TokenPrice | None:
    """Return one price that is at least each of ``prices`` in every rate, or ``None`` when one of them is unknown."""
    known = [price for price in prices if price is not None]
    if not known or len(known) != len(prices):
        return None
    worst_input = max(price.worst_input for price in known)
    worst_output = max(price.worst_output for price in known)
    return TokenPrice((Rates(0, worst_input, worst_output, worst_input, worst_input),), "dearest")


def configured(price: Price, source: str) -> TokenPrice:
    """Return the price that a resource states."""
    cached = price.input if price.cached_input is None else price.cached_input
    return TokenPrice((Rates(0, price.input, price.output, cached, price.input),), source)


class PriceMap:
    """litellm's map of models to prices. Entries are decoded only when asked for."""

    def __init__(self, entries: dict[str, msgspec.Raw]) -> None:
        self._entries = entries

    @classmethod
    def load(cls, path: Path | None = None) -> PriceMap:
        """Read the map that ships inside the installed litellm (or ``path``). Without one nothing is priced by it.

        Takes about 10 ms and, until the map is dropped, the 3 MB of the file; keep the prices, not the map.
        """
        found = path or _installed_map()
        if found is None or not found.exists():
            return cls({})
        return cls(msgspec.json.decode(found.read_bytes(), type=dict[str, msgspec.Raw]))

    def price(self, model: str, dialect: str = "openai") -> TokenPrice | None:
        """Return the price of ``model`` as its provider names it, or ``None`` when the map does not price its tokens."""
        for prefix in ("", *_DIALECT_PREFIXES.get(dialect, ())):
            raw = self._entries.get(prefix + model)
            if raw is not None:
                return _parse(msgspec.json.decode(raw))
        return None


def _installed_map() -> Path | None:
    """Return where the installed litellm keeps its map, without importing it."""
    spec = find_spec("litellm")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / _MAP_FILE


def _parse(entry: Any) -> TokenPrice | None:
    """Make a price of one entry of the map; entries that do not charge by token have none."""
    if not isinstance(entry, dict):
        return None
    standard = _rates(entry, "", 0)
    if standard is None:
        return None
    return TokenPrice(
        _with_tiers(entry, standard, ""),
        "price_map",
        _with_tiers(entry, _rates(entry, "_priority", 0), "_priority"),
    )


def _with_tiers(entry: dict[str, Any], base: Rates | None, suffix: str) -> tuple[Rates, ...]:
    """Return ``base`` and the dearer rates for long inputs (``…_above_200k_tokens``)."""
    if base is None:
        return ()
    thresholds = sorted(int(match[1]) for key in entry if (match := _TIER.match(key)))
    tiers = [_rates(entry, f"_above_{k}k_tokens{suffix}", k * 1_000) for k in thresholds]
    return (base, *(tier for tier in tiers if tier is not None))


def _rates(entry: dict[str, Any], suffix: str, above: int) -> Rates | None:
    """Read one row of rates; an absent cached rate means that cached tokens cost as much as others."""
    dear_in = _micros(entry, "input_cost_per_token" + suffix)
    dear_out = _micros(entry, "output_cost_per_token" + suffix)
    if dear_in is None and dear_out is None:
        return None
    price_in = dear_in or 0
    price_out = max(dear_out or 0, _micros(entry, "output_cost_per_reasoning_token" + suffix) or 0)
    cached = _micros(entry, "cache_read_input_token_cost" + suffix)
    written = _micros(entry, "cache_creation_input_token_cost" + suffix)
    return Rates(
        above, price_in, price_out, price_in if cached is None else cached, max(price_in, written or 0)
    )


def _micros(entry: dict[str, Any], key: str) -> int | None:
    """Return a rate in micro-dollars per million tokens, or ``None`` when absent or not a plain amount."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return round(value * _USD_PER_TOKEN)
