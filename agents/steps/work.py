"""What the kinds of step share: the tools of the trade, handed to each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import jsonschema
import msgspec

from agents.budgets import Need
from agents.definition import ModelOptions, StepBudget
from agents.effects import Effects
from agents.leases import Claim
from agents.model_client import ModelClient
from agents.tools.functions import ToolContext
from agents.tools.toolbox import ToolBox

InThread = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Work:
    """What steps work with, in one process."""

    effects: Effects
    models: ModelClient
    tools: ToolBox
    in_thread: InThread
    spans: Any
    """A :class:`agents.spans.Spans`."""


def digest(value: Any) -> str:
    """Names an input in the step's row."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def tool_context(claim: Claim, key: str) -> ToolContext:
    """What a function tool is told about its call."""
    return ToolContext(key, claim.tenant, claim.run_id, claim.path, claim.attempt)


def need_of(body: dict[str, Any], budget: StepBudget | None = None, spent: tuple[int, int] = (0, 0)) -> Need:
    """What a model call may use. A token is at least three bytes of JSON in all but freak texts, plus overhead."""
    prompt_tokens = len(msgspec.json.encode(body)) // 3 + 64
    usd = tokens = None
    if budget is not None:
        usd = None if budget.cost_usd is None else budget.cost_usd - spent[0]
        tokens = None if budget.tokens is None else budget.tokens - spent[1]
    return Need(prompt_tokens, body["max_tokens"], step_usd_micros=usd, step_tokens=tokens)


def request(options: ModelOptions, model: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of a chat completion."""
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": options.max_tokens}
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.output_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": options.output_schema, "strict": True},
        }
    return body


def parse_output(options: ModelOptions, message: dict[str, Any]) -> tuple[Any, str | None]:
    """A model's answer as the step's output, or what is wrong with it (said so that the model can mend it)."""
    text = message.get("content") or ""
    if options.output_schema is None:
        return text, None
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None, "Your answer is not valid JSON."
    fault = next(jsonschema.Draft202012Validator(options.output_schema).iter_errors(value), None)
    if fault is not None:
        place = ".".join(map(str, fault.absolute_path)) or "the answer"
        return None, f"Your answer does not satisfy the schema: {place}: {fault.message[:300]}"
    return value, None
