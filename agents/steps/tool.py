"""``call: tool``: one call of a function or of an HTTP address."""

from __future__ import annotations

from typing import Any

from agents import templates
from agents.effects import Call, Effect, Outcome
from agents.errors import StepFailed, ToolError
from agents.leases import Claim
from agents.steps.work import Work, digest, tool_context
from agents.tools.toolbox import BoundTool


def prepare(work: Work, claim: Claim) -> tuple[BoundTool, dict[str, Any], str]:
    """The tool, its arguments and their hash; :class:`StepFailed` when they do not go together."""
    options = claim.step.tool
    override = claim.step.effect.class_ if claim.step.effect is not None else None
    tool = work.tools.find(options.tool, claim.tenant, override)
    args = templates.resolve(options.args, claim.values)
    try:
        return tool, work.tools.check(tool, args), digest(args)
    except ToolError as error:
        raise StepFailed("tool", error.message) from error


def run_in_line(work: Work, claim: Claim) -> tuple[Any, str]:
    """Call a function without outside effects in this thread: the step itself is its record."""
    tool, args, input_hash = prepare(work, claim)
    try:
        return work.tools.call_in_line(
            tool, args, tool_context(claim, f"{claim.run_id}:{claim.path}:0")
        ), input_hash
    except ToolError as error:
        raise StepFailed("tool", error.message) from error


async def run(work: Work, claim: Claim) -> tuple[Any, str]:
    """Return the output and the hash of the arguments."""
    tool, args, input_hash = prepare(work, claim)
    try:
        return await perform(work, claim, tool, args, "0"), input_hash
    except ToolError as error:
        raise StepFailed("tool", error.message) from error


async def perform(work: Work, claim: Claim, tool: BoundTool, args: dict[str, Any], iteration: str) -> Any:
    """One durable tool call. A definite no is a :class:`ToolError`."""
    refused: list[ToolError] = []

    async def call(made: Call) -> Outcome:
        try:
            return Outcome(await work.tools.call(tool, args, tool_context(claim, made.key), work.in_thread))
        except ToolError as error:
            refused.append(error)
            raise StepFailed("tool", error.message) from error

    async def reconcile(key: str) -> Outcome | None:
        found = await work.tools.reconcile(tool, key, work.in_thread)
        return None if found is None else Outcome(found)

    can_reconcile = tool.function is not None and tool.function.reconcile is not None
    with work.spans.piece(claim, "tool", tool.name, effect=tool.effect_class):
        try:
            return await work.effects.perform(
                claim,
                Effect("tool", tool.name, tool.effect_class, iteration),
                call,
                reconcile if can_reconcile else None,
            )
        except StepFailed:
            if refused:
                raise refused[0] from None
            raise
