"""What a call used, in tokens, and what that costs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

UsageSource = Literal["upstream", "estimated", "none"]
# Tokens are about four bytes of English text; used only until a model's own past says better.
BYTES_PER_TOKEN = 4


class Usage(msgspec.Struct):
    """Tokens of one call. ``source`` says whether the upstream reported them or AIRI estimated them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "none"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return _count(details.get(name)) if isinstance(details, dict) else 0


def from_openai(usage: dict[str, Any]) -> Usage:
    """Read OpenAI's ``usage`` object; what is missing or no number counts as 0."""
    total_input = _count(usage.get("prompt_tokens"))
    return Usage(
        input_tokens=total_input,
        output_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=min(total_input, _detail(usage, "prompt_tokens_details", "cached_tokens")),
        reasoning_tokens=_detail(usage, "completion_tokens_details", "reasoning_tokens"),
        source="upstream",
    )


def estimated(input_tokens: int, output_tokens: int) -> Usage:
    """Return usage that no upstream reported."""
    return Usage(input_tokens=input_tokens, output_tokens=output_tokens, source="estimated")
