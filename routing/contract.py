"""What a model promises its callers, checked against what a request needs."""

from __future__ import annotations

import msgspec

from airi.config.kinds import ModelContract
from routing.errors import ContextLengthError, ContractError


class Needs(msgspec.Struct, frozen=True, gc=False):
    """What a request asks of a model. ``context_tokens`` is the least its prompt can be; 0 when not known."""

    tools: bool = False
    json_schema: bool = False
    vision: bool = False
    embeddings: bool = False
    context_tokens: int = 0


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
    if contract.context_window is not None and needs.context_tokens > contract.context_window:
        missing.append("context")
    return missing


def droppable(missing: list[str]) -> bool:
    """Say whether leaving fields out would make the request fit (never images, never length)."""
    return all(need in _DROPPABLE for need in missing)


def dropped_fields(missing: list[str]) -> tuple[str, ...]:
    """Return the request's fields to leave out so that the ``missing`` needs vanish."""
    return tuple(field for need in missing for field in _DROPPABLE[need])


def refusal(alias: str, contract: ModelContract, missing: list[str]) -> ContractError | ContextLengthError:
    """Return the error that names the first need that ``alias`` cannot meet."""
    need = missing[0]
    if need == "context":
        return ContextLengthError(
            f"The prompt is longer than the context window of '{alias}' ({contract.context_window} tokens).",
            param="messages",
        )
    words = {
        "tools": ("does not take tools", "tools"),
        "json_schema": ("does not take a JSON schema as response format", "response_format"),
        "vision": ("does not take images", "messages"),
        "embeddings": ("does not serve embeddings", "model"),
    }
    what, param = words[need]
    return ContractError(f"The model '{alias}' {what}.", param=param)
