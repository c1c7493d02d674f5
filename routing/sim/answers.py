"""What the simulated model says: deterministic by model, prompt, seed and choice."""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass
from typing import Any

from airi.errors import InvalidRequestError
from routing.sim import tokens
from routing.sim.asked import last_user_text, max_tokens_of, stops_of, text_of
from routing.sim.behaviour import Behaviour
from routing.sim.schema import Generator

_MAX_SCRIPTED_TOKENS = 100_000
_SENTENCES = (
    "A real model would now weigh what you wrote and answer it.",
    "This one arranges prepared sentences, so that calls, limits and traces can be tried without a GPU.",
    "Its timing follows an engine's physics: a queue, batches, memory in blocks, a cache of prefixes.",
    "The same prompt with the same seed gives the same words.",
    "Ask for tools or for a schema and the arguments will fit it.",
    "Point the model's alias at a real engine and nothing else has to change.",
    "Every token you see here is counted and recorded as a real one would be.",
    "There is no knowledge in these lines, only their shape.",
)


@dataclass(slots=True)
class ToolCall:
    """A call of a tool; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """One choice, cut to its limits. ``pieces`` are what a stream sends, one a step of the engine."""

    text: str | None
    tool_calls: list[ToolCall]
    finish_reason: str
    pieces: list[Piece]
    tokens: int


@dataclass(slots=True)
class Piece:
    """A fragment of text (``tool`` is ``None``), or of a tool call's arguments; the first names the tool."""

    text: str
    tool: int | None = None
    first: ToolCall | None = None


def chat_answer(model: str, body: dict[str, Any], behaviour: Behaviour, choice: int, room: int) -> Answer:
    """Return the answer to a chat request; ``room`` is what the context leaves for it, in tokens."""
    seed = _seed(model, body, choice)
    if behaviour.tool_calls:
        calls = [_scripted_call(seed, call) for call in behaviour.tool_calls]
        return _finish(behaviour.text, calls, body, behaviour, room)
    if behaviour.text is not None or behaviour.tokens is not None:
        return _finish(_scripted_text(behaviour), [], body, behaviour, room)
    messages = body["messages"]
    last = messages[-1]
    if (
        body.get("tools")
        and body.get("tool_choice") != "none"
        and last.get("role") not in ("tool", "function")
    ):
        return _finish(None, _tool_calls(seed, body), body, behaviour, room)
    return _finish(_text(model, body, seed, choice), [], body, behaviour, room)


def completion_answer(
    model: str, prompt: str, body: dict[str, Any], behaviour: Behaviour, choice: int, room: int
) -> Answer:
    """Return the answer to a text completion."""
    if behaviour.text is not None or behaviour.tokens is not None:
        text = _scripted_text(behaviour)
    else:
        text = _prose(
            model, prompt, _seed(model, {"prompt": prompt, "seed": body.get("seed")}, choice), choice
        )
    return _finish(text, [], body, behaviour, room)


def _text(model: str, body: dict[str, Any], seed: random.Random, choice: int) -> str:
    words = last_user_text(body)
    response_format = body.get("response_format")
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if isinstance(response_format, dict) and kind == "json_schema":
        schema = response_format.get("json_schema")
        document = schema.get("schema") if isinstance(schema, dict) else None
        if not isinstance(document, dict):
            raise InvalidRequestError(
                "response_format.json_schema.schema is missing.", param="response_format"
            )
        return json.dumps(Generator(document, seed, words).value(), ensure_ascii=False)
    if kind == "json_object":
        return json.dumps(
            {"simulated": True, "answer": _prose(model, words, seed, choice)}, ensure_ascii=False
        )
    last = body["messages"][-1]
    if last.get("role") in ("tool", "function"):
        return _after_tools(model, body["messages"], words)
    return _prose(model, words, seed, choice)


def _prose(model: str, words: str, seed: random.Random, choice: int) -> str:
    said = " ".join(words.split())[:160]
    opening = f"This is a simulated answer from {model}; no model has read your words."
    quoted = f" You wrote: “{said}”." if said else ""
    variant = f" This is choice {choice + 1}." if choice else ""
    return (
        opening + quoted + variant + "".join([" " + s for s in seed.sample(_SENTENCES, seed.randint(1, 3))])
    )


def _after_tools(model: str, messages: list[dict[str, Any]], words: str) -> str:
    names = {
        call.get("id"): (call.get("function") or {}).get("name")
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    results = []
    for message in reversed(messages):
        if message.get("role") not in ("tool", "function"):
            break
        name = names.get(message.get("tool_call_id")) or message.get("name") or "the tool"
        results.append(f"{name} returned: {' '.join(text_of(message.get('content')).split())[:400]}")
    asked = f" You asked: “{' '.join(words.split())[:160]}”." if words else ""
    return f"This is a simulated answer from {model}.{asked} {' '.join(f'{r}.' for r in reversed(results))}"


def _tool_calls(seed: random.Random, body: dict[str, Any]) -> list[ToolCall]:
    functions = [
        t["function"] for t in body["tools"] if isinstance(t, dict) and isinstance(t.get("function"), dict)
    ]
    if not functions:
        raise InvalidRequestError("tools must hold functions.", param="tools")
    words = last_user_text(body)
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        wanted = (choice.get("function") or {}).get("name")
        chosen = [f for f in functions if f.get("name") == wanted]
        if not chosen:
            raise InvalidRequestError(
                f"tool_choice names {wanted!r}, which is not among the tools.", param="tool_choice"
            )
    else:
        chosen = _fitting(functions, words)
        if body.get("parallel_tool_calls") is False:
            chosen = chosen[:1]
    return [_call(seed, function, words) for function in chosen]


def _fitting(functions: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """Return the tools whose names the user's words touch (at most three), else the one that fits best."""
    said = set(words.lower().replace("_", " ").split())

    def touched(text: str) -> int:
        return len(said & {w for w in text.lower().replace("_", " ").replace(".", " ").split() if len(w) > 3})

    named = [f for f in functions if touched(str(f.get("name", "")))]
    if named:
        return named[:3]
    return [max(functions, key=lambda f: touched(str(f.get("description", ""))))]


def _call(seed: random.Random, function: dict[str, Any], words: str) -> ToolCall:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    arguments = Generator(parameters, seed, words).value()
    return ToolCall(_call_id(seed), str(function.get("name")), json.dumps(arguments, ensure_ascii=False))


def _scripted_call(seed: random.Random, call: dict[str, Any]) -> ToolCall:
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(call.get("id") or _call_id(seed)), call["name"], text)


def _scripted_text(behaviour: Behaviour) -> str:
    if behaviour.text is not None:
        return behaviour.text
    wanted = min(behaviour.tokens or 0, _MAX_SCRIPTED_TOKENS)
    return "".join([f" w{index % 1000}" for index in range(wanted)])


def _finish(
    text: str | None, calls: list[ToolCall], body: dict[str, Any], behaviour: Behaviour, room: int
) -> Answer:
    """Apply stop strings and the token limit, and cut into pieces."""
    reason = "tool_calls" if calls else "stop"
    if text is not None and not calls:
        for stop in stops_of(body):
            text = text.partition(stop)[0]
    limit = None if behaviour.ignore_max_tokens else max_tokens_of(body)
    limit = room if limit is None else min(limit, room)
    left = max(limit, 1)
    pieces: list[Piece] = []
    if text is not None:
        words = tokens.split(text)
        if len(words) > left:
            words, reason = words[:left], "length"
        left -= len(words)
        text = "".join(words)
        pieces += [Piece(word) for word in (_sized(text, behaviour.chunks) if behaviour.chunks else words)]
    used = limit - left if text is not None else 0
    kept: list[ToolCall] = []
    for index, call in enumerate(calls):
        words = tokens.split(call.arguments) or [""]
        if left <= 0:
            reason = "length"
            break
        if len(words) > left:
            words, reason = words[:left], "length"
        left -= len(words)
        used += len(words)
        shown = ToolCall(call.id, call.name, "".join(words))
        kept.append(shown)
        parts = _sized(shown.arguments, behaviour.chunks) if behaviour.chunks else words
        pieces += [Piece(part, index, shown if at == 0 else None) for at, part in enumerate(parts)]
    return Answer(text, kept, behaviour.finish_reason or reason, pieces, used)


def _sized(text: str, sizes: tuple[int, ...]) -> list[str]:
    """Cut ``text`` into pieces of the sizes given, in characters; the last size goes on."""
    parts: list[str] = []
    start = 0
    while start < len(text):
        size = sizes[min(len(parts), len(sizes) - 1)]
        parts.append(text[start : start + size])
        start += size
    return parts or [""]


def _seed(model: str, body: dict[str, Any], choice: int) -> random.Random:
    asked = body.get("messages") if "messages" in body else body.get("prompt")
    text = json.dumps([model, asked, body.get("seed"), choice])
    return random.Random(zlib.crc32(text.encode()))  # noqa: S311  # repeatable, not secret


def _call_id(seed: random.Random) -> str:
    return f"call_{seed.getrandbits(96):024x}"
