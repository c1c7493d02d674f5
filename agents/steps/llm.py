"""``call: llm``: one question to a model, asked again a few times when the answer does not satisfy the schema."""

from __future__ import annotations

from typing import Any

from agents import prompts, templates
from agents.definition import LlmOptions
from agents.effects import Call, Effect, Outcome
from agents.errors import StepFailed
from agents.leases import Claim
from agents.model_client import Caller
from agents.steps.work import Work, digest, need_of, parse_output, request


async def run(work: Work, claim: Claim) -> tuple[Any, str]:
    """Return the output and the hash of the input."""
    options = claim.step.llm
    messages = _messages(options, claim.values)
    model = str(templates.resolve(options.model, claim.values))
    input_hash = digest([model, messages])
    for iteration in range(options.repairs + 1):
        answer = await ask(work, claim, request(options, model, messages), str(iteration))
        output, fault = parse_output(options, answer["message"])
        if fault is None:
            return output, input_hash
        messages = [
            *messages,
            answer["message"],
            {"role": "user", "content": f"{fault} Answer again, with JSON only."},
        ]
    raise StepFailed("invalid_output", f"no valid answer after {options.repairs + 1} questions to {model}")


async def ask(work: Work, claim: Claim, body: dict[str, Any], iteration: str) -> dict[str, Any]:
    """One durable model call; what was answered before is not asked again."""
    caller = Caller(claim, claim.span_id)

    async def call(made: Call) -> Outcome:
        if made.grant.output_tokens is not None:
            body["max_tokens"] = made.grant.output_tokens
        return await work.models.complete(caller, made, body)

    effect = Effect("model", body["model"], "idempotent", iteration, need_of(body))
    answer: dict[str, Any] = await work.effects.perform(claim, effect, call)
    return answer


def _messages(options: LlmOptions, values: dict[str, Any]) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": prompts.render(options.system, values)}] if options.system else []
    if options.prompt is not None:
        return [*system, {"role": "user", "content": prompts.render(options.prompt, values)}]
    given = templates.resolve(options.messages, values)
    if not isinstance(given, list) or not all(isinstance(item, dict) and "role" in item for item in given):
        raise StepFailed("expression", "'messages' must come to a list of chat messages")
    return [*system, *given]
