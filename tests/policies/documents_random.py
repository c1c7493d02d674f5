"""Random documents that try to make a stream's redaction differ from the whole's; shared by tests and bench/redaction.py."""

from __future__ import annotations

import json
import random
from typing import Any

FRAGMENTS = [
    "john.doe@example.co.uk", "x@example.co", ".uk", "@", " ", "a", "4111 1111 1111 1111", "4111-1111-1111-1111",
    "5500005555555559", "1", "12 ", "+46 (0)8 928 571 38", "0490 75 40 81", "780-999-2181", "345-899-3560x4587",
    "call ", "phone: ", " office", " mobile", "-Fax ", "416 60 039", "GB82 WEST 1234 5698 7654 32",
    "GB82WEST12345698765432", "DE89 3704 ", "0044 0532 0130 00", "AKIAIOSFODNN7EXAMPLE", "sk-proj-abcDEF1234567890abcdef",
    "password: ", "hunter2xx!", '"', "'", "\\", "\n", "ghp_" + "a1B2" * 9,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc-def_ghi",
    "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEabc/+\n" * 90 + "-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n", " MIIEabc ", "-----END", "-----", " KEY-----", "hello world", "Zürich ", "机密",
    "今天天气很好", "falcon", "Project X", "project", " x", "naïve plan", "é", "😀", "A" * 700, "sk-" + "a1" * 400,
    ".", ",", "(", ")", "-", "+", ":", "https://user:", "p4ssw0rd@host/", "token=", "bearer ", "IBAN ", "ΟΔΟΣ", "İ",
    "780\u2011999\u20112181", "4111\u00a01111\u00a01111\u00a01111", "\x00", "\u2028",
]  # fmt: skip
WORDS = ["falcon", "project x", "geheim", "机密", "naïve plan", "οδος"]


def text(rng: random.Random, longest: int = 13) -> str:
    """Return a random text made of fragments that nearly match."""
    return "".join(_piece(rng) for _ in range(rng.randrange(1, longest)))


def _piece(rng: random.Random) -> str:
    if rng.random() < 0.8:
        return rng.choice(FRAGMENTS)
    return chr(rng.choice([rng.randrange(32, 127), rng.randrange(48, 58), rng.randrange(0xC0, 0x500)]))


def cut(rng: random.Random, whole: str) -> list[str]:
    """Cut a text into random pieces."""
    longest = rng.choice([1, 2, 3, 6, 20, 100])
    pieces = []
    position = 0
    while position < len(whole):
        end = position + rng.randrange(1, longest + 1)
        pieces.append(whole[position:end])
        position = end
    return pieces


def arguments(rng: random.Random) -> str:
    """Return a tool call's arguments: JSON with random escapes, now and then something that is not JSON."""
    if rng.random() < 0.1:
        return text(rng, 6)
    value: dict[str, Any] = {
        text(rng, 3)[:30]: text(rng, 6),
        "phone": ["0490 75 40 81", text(rng, 4)],
        "card": rng.choice([4111111111111111, 4111111111111112, 17, -2.5e3]),
        "nested": {"password": "hunter2xx!", "ok": [True, None]},
    }
    written = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    return written.replace("@", "\\u0040") if rng.random() < 0.3 else written


def message(rng: random.Random) -> dict[str, Any]:
    """Return one choice's whole message."""
    made: dict[str, Any] = {"content": text(rng)}
    if rng.random() < 0.3:
        made["reasoning_content"] = text(rng, 5)
    if rng.random() < 0.1:
        made["refusal"] = text(rng, 4)
    if rng.random() < 0.5:
        made["tool_calls"] = [
            {
                "index": index,
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": "f", "arguments": arguments(rng)},
            }
            for index in range(rng.randrange(1, 3))
        ]
    return made


def whole_answer(rng: random.Random) -> dict[str, Any]:
    """Return a whole chat completion with one to three choices."""
    choices = [
        {"index": index, "message": message(rng), "finish_reason": "stop"}
        for index in range(rng.randrange(1, 4))
    ]
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}


def stream_of(rng: random.Random, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an answer as chunks: fields and choices interleaved at random, surrogate pairs cut now and then."""
    queues: list[list[dict[str, Any]]] = []
    for choice in answer["choices"]:
        queues += _queues(rng, choice)
    chunks = []
    while queues:
        queue = rng.choice(queues)
        chunks.append(_chunk([queue.pop(0)]))
        queues = [queue for queue in queues if queue]
    chunks += [
        _chunk([{"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}])
        for choice in answer["choices"]
    ]
    usage = {"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 3}}
    return [*chunks, usage]


def _queues(rng: random.Random, choice: dict[str, Any]) -> list[list[dict[str, Any]]]:
    index, made = choice["index"], choice["message"]
    queues = []
    for field in ("content", "reasoning_content", "refusal"):
        if made.get(field):
            units = _units(rng, made[field])
            queues.append(
                [
                    {"index": index, "delta": {field: piece}, "finish_reason": None}
                    for piece in cut(rng, units)
                ]
            )
    for call in made.get("tool_calls", ()):
        pieces = cut(rng, call["function"]["arguments"])
        deltas = [{"index": call["index"], "function": {"arguments": piece}} for piece in pieces]
        first = {**call, "function": {"name": "f", "arguments": ""}}
        queues.append(
            [
                {"index": index, "delta": {"tool_calls": [delta]}, "finish_reason": None}
                for delta in [first, *deltas]
            ]
        )
    return queues


def _units(rng: random.Random, written: str) -> str:
    """Write characters outside the basic plane as two halves now and then, as a careless upstream does."""
    if rng.random() < 0.7:
        return written
    return "".join(
        char
        if ord(char) < 0x10000
        else chr(0xD800 + (ord(char) - 0x10000 >> 10)) + chr(0xDC00 + (ord(char) - 0x10000 & 0x3FF))
        for char in written
    )


def _chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


def joined(chunks: list[dict[str, Any]]) -> dict[tuple[Any, ...], str]:
    """Return the texts that a client puts together from chunks, by choice and field."""
    texts: dict[tuple[Any, ...], str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for field, value in choice.get("delta", {}).items():
                if isinstance(value, str):
                    key: tuple[Any, ...] = (choice["index"], field)
                    texts[key] = texts.get(key, "") + value
                elif field == "tool_calls":
                    for call in value:
                        key = (choice["index"], field, call["index"])
                        texts[key] = texts.get(key, "") + call.get("function", {}).get("arguments", "")
    return {key: value for key, value in texts.items() if value}


def fields(answer: dict[str, Any]) -> dict[tuple[Any, ...], str]:
    """Return the texts of a whole answer, by choice and field, as :func:`joined` does."""
    texts: dict[tuple[Any, ...], str] = {}
    for choice in answer["choices"]:
        for field, value in choice["message"].items():
            if isinstance(value, str):
                texts[choice["index"], field] = value
            elif field == "tool_calls":
                for call in value:
                    texts[choice["index"], field, call["index"]] = call["function"]["arguments"]
    return {key: value for key, value in texts.items() if value}
