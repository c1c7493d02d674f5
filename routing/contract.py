"""What a model promises its callers, checked against what a request needs."""

from __future__ import annotations

import msgspec

from airi.config.kinds import ModelContract
from routing.errors import ContractError


class Needs(msgspec.Struct, frozen=True, gc=False):
    """What a request asks of a model."""

    tools: bool = False
    json_schema: bool = False
    vision: bool = False
    embeddings: bool = False


NOTHING = Needs()
_DROPPABLE = {
    "tools": ("tools", "tool_choice", "parallel_tool_calls"),
    "json_schema": ("response_format",),
}


def unmet(contract: ModelContract, needs: Needs) -> list[str]:
    """Return the names of the needs that ``contract`` does not meet (empty: all met)."""
    missing = []
    if needs.tools and not contract.tools:
        missing.append("tools")
    if needs.json_schema and not contract.json_schema:
        missing.append("json_schema")
    if needs.vision and not contract.vision:
        missing.append("vision")
    if needs.embeddings and not contract.embeddings:
        missing.append("embeddings")
    return missing


def droppable(missing: list[str]) -> bool:
    """Say whether leaving fields out would make the request fit (never images)."""
    return all(need in _DROPPABLE for need in missing)


def dropped_fields(missing: list[str]) -> tuple[str, ...]:
    """Return the request's fields to leave out so that the ``missing`` needs vanish."""
    return tuple(field for need in missing for field in _DROPPABLE[need])


def refusal(alias: str, missing: list[str]) -> ContractError:
    """Return the error that names the first need that ``alias`` cannot meet."""
    words = {
        "tools": ("does not take tools", "tools"),
        "json_schema": ("does not take a JSON schema as response format", "response_format"),
        "vision": ("does not take images", "messages"),
        "embeddings": ("does not serve embeddings", "model"),
    }
    what, param = words[missing[0]]
    return ContractError(f"The model '{alias}' {what}.", param=param)
