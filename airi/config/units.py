"""Units as people write them in YAML (``30s``, ``1.50`` dollars) and as the code holds them (ms, micro-dollars)."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DURATION = re.compile(r"(?P<value>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
MOST = 1_000_000_000_000
"""The highest rate, count or size that is taken: far above any use, far below where arithmetic of Redis or SQL breaks."""
_LONGEST_MS = 36_600 * _UNIT_MS["d"]
_MOST_USD = 1_000_000_000
"""In micro-dollars still a tenth of what Redis' numbers hold exactly."""


def parse_duration(value: Any) -> int:
    """Return milliseconds from ``250ms``, ``30s``, ``1.5m``, ``24h``, ``7d`` or an integer of milliseconds."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _bounded(value, value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"expected a duration such as 250ms, 30s, 20m or 24h, got {value!r}")
    return _bounded(float(match["value"]) * _UNIT_MS[match["unit"]], value)


def _bounded(milliseconds: float, value: Any) -> int:
    if not 0 <= milliseconds <= _LONGEST_MS:
        raise ValueError(f"expected a duration between 0 and 36600d, got {str(value)[:40]}")
    return round(milliseconds)


def parse_usd(value: Any) -> int:
    """Return micro-dollars from an amount in dollars (``1.50``), rounded half up."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected an amount in US dollars, got {value!r}")
    try:
        amount = Decimal(str(value))
    except InvalidOperation as error:
        raise ValueError(f"expected an amount in US dollars, got {value!r}") from error
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"expected a non-negative amount in US dollars, got {value!r}")
    if amount > _MOST_USD:
        raise ValueError(f"expected at most {_MOST_USD} US dollars, got {str(value)[:40]}")
    return int((amount * 1_000_000).quantize(Decimal(1), rounding=ROUND_HALF_UP))


Milliseconds = Annotated[
    int,
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(ms|s|m|h|d)$", "examples": ["30s"]}
    ),
]
"""A duration: ``30s`` in YAML, an integer of milliseconds in code."""
UsdMicros = Annotated[
    int,
    BeforeValidator(parse_usd),
    PlainSerializer(lambda micros: micros / 1_000_000, return_type=float, when_used="json"),
    WithJsonSchema({"type": ["number", "string"], "minimum": 0, "examples": [1.5]}),
]
"""Money: dollars in YAML, an integer of micro-dollars in code."""
