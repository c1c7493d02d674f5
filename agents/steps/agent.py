"""``call: agent``: a model and tools in turns, until there is an answer.

Each model call and each tool call is an effect of its own, keyed by its place (``turn`` or ``turn.call``), so that
after a crash the conversation is rebuilt from what was recorded and goes on where it stopped: nothing is paid twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from agents import prompts, templates
from agents.definition import AgentOptions
from agents.effects import Call, Effect, Outcome
from agents.errors import StepFailed, ToolError
from agents.leases import Claim
from agents.model_client import Caller
from agents.steps import tool as tool_step
from agents.steps.work import Work, digest, need_of, parse_output, request
from agents.tools.toolbox import BoundTool
from airi.ids import new_span_id

_MAX_CALLS_A_TURN = 16
_RESULT_CHARACTERS = 50_000


@dataclass(slots=True)
class _Conversation:
    work: Work
    claim: Claim
    options: AgentOptions
    model: str
    tools: dict[str, BoundTool]
    messages: list[dict[str, Any]]
    usd_micros: int = 0
    tokens: int = 0

    async def turn(self, number: int) -> dict[str, Any]:
        """Ask the model; return its message."""
        body = request(self.options, self.model, self.messages)
        if self.tools:
            body["tools"] = [_declaration(name, bound) for name, bound in self.tools.items()]
            if number == self.options.max_turns - 1:  # the last word has to be an answer
                body["tool_choice"] = "none"
        caller = Caller(self.claim, new_span_id())

        async def call(made: Call) -> Outcome:
            if made.grant.output_tokens is not None:
                body["max_tokens"] = made.grant.output_tokens
            return await self.work.models.complete(caller, made, body)

        need = need_of(body, self.options.budget, (self.usd_micros, self.tokens))
        effect = Effect("model", self.model, "idempotent", str(number), need)
        with self.work.spans.piece(
            self.claim, "agent", f"{self.claim.step.id} turn {number + 1}", span_id=caller.span_id
        ):
            answer = await self.work.effects.perform(self.claim, effect, call)
        self.usd_micros += answer.get("cost_usd_micros") or 0
        self.tokens += (answer.get("usage") or {}).get("total_tokens") or 0
        message: dict[str, Any] = answer["message"]
        self.messages.append(message)
        return message

    async def call_tools(self, number: int, calls: list[dict[str, Any]]) -> None:
        """Do what the model asked for, in order, and tell it what came of it."""
        if len(calls) > _MAX_CALLS_A_TURN:
            raise StepFailed(
                "tool",
                f"the model asked for {len(calls)} tool calls at once; the most is {_MAX_CALLS_A_TURN}",
            )
        for index, call in enumerate(calls):
            function = call.get("function") or {}
            content = await self.one_tool(
                f"{number}.{index}", str(function.get("name")), function.get("arguments")
            )
            self.messages.append({"role": "tool", "tool_call_id": call.get("id", ""), "content": content})

    async def one_tool(self, iteration: str, name: str, arguments: Any) -> str:
        """Call one tool; what the model did wrong and what the tool refused is an answer to the model."""
        bound = self.tools.get(name)
        if bound is None:
            return _said(error=f"there is no tool {name[:64]!r}; you have {', '.join(self.tools)}")
        try:
            args = msgspec.json.decode(arguments or "{}") if isinstance(arguments, str) else arguments
            self.work.tools.check(bound, args)
            result = await tool_step.perform(self.work, self.claim, bound, args, iteration)
        except msgspec.DecodeError:
            return _said(error="the arguments are not valid JSON")
        except ToolError as error:
            return _said(error=error.message)
        text = result if isinstance(result, str) else msgspec.json.encode(result).decode()
        if len(text) > _RESULT_CHARACTERS:
            return text[:_RESULT_CHARACTERS] + f"\n[cut: the result has {len(text):,} characters]"
        return text


async def run(work: Work, claim: Claim) -> tuple[Any, str]:
    """Return the output and the hash of the input."""
    options = claim.step.agent
    talk = _begin(work, claim, options)
    input_hash = digest([talk.model, talk.messages, options.tools])
    repairs = 0
    for number in range(options.max_turns):
        message = await talk.turn(number)
        calls = message.get("tool_calls")
        if calls:
            await talk.call_tools(number, calls)
            continue
        output, fault = parse_output(options, message)
        if fault is None:
            return output, input_hash
        if repairs == options.repairs:
            raise StepFailed(
                "invalid_output", f"no valid answer after {repairs + 1} attempts of {talk.model}"
            )
        repairs += 1
        talk.messages.append({"role": "user", "content": f"{fault} Answer again, with JSON only."})
    raise StepFailed("max_turns", f"no answer within {options.max_turns} turns")


def _begin(work: Work, claim: Claim, options: AgentOptions) -> _Conversation:
    values = claim.values
    if templates.is_expression(options.input):
        resolved = templates.resolve(options.input, values)
        text = resolved if isinstance(resolved, str) else msgspec.json.encode(resolved).decode()
    else:
        text = prompts.render(options.input, values)
    messages = (
        [{"role": "system", "content": prompts.render(options.system, values)}] if options.system else []
    )
    messages.append({"role": "user", "content": text})
    model = str(templates.resolve(options.model, values))
    tools = {_function_name(name): work.tools.find(name, claim.tenant) for name in options.tools}
    return _Conversation(work, claim, options, model, tools, messages)


def _function_name(name: str) -> str:
    """A tool's name as models may write it."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64]


def _declaration(name: str, bound: BoundTool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": bound.description[:1_024],
            "parameters": bound.input_schema,
        },
    }


def _said(*, error: str) -> str:
    return msgspec.json.encode({"error": error}).decode()
