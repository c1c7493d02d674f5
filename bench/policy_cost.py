"""What policies cost in the data plane: microseconds of CPU, the best of several rounds. ``python bench/policy_cost.py``."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from policies.detectors import Scanner
from policies.detectors.spans import PII, SECRETS
from policies.engine import CallFacts, PolicyEngine, PolicySet
from policies.variables import DECLARATIONS, NOTHING, Reader, Situation

PROSE = ("The quick brown fox jumps over the lazy dog, and then it sleeps for a while in the sun. " * 120)[
    :10_000
]
DIGITS = ("12345 67 8901,23 456.789 " * 420)[:10_000]
FOUND = "Mail john.doe@example.co.uk or call +46 (0)8 928 571 38, card 4111 1111 1111 1111. "
ROUNDS = 9


def cost(work: Callable[[], object], repeat: int = 200, per: int = 1) -> float:
    """Return microseconds of CPU of one run (or one of ``per`` parts of it): the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        since = time.process_time_ns()
        for _ in range(repeat):
            work()
        best = min(best, (time.process_time_ns() - since) / repeat / per / 1_000)
    return best


def three_policies() -> PolicySet:
    """Return the three policies that the call benchmark uses: deny, redact in both stages, route."""
    documents: list[dict[str, Any]] = [
        {
            "when": 'data.classes.exists(c, c.startsWith("pii.")) && model.region != "eu" && role == "intern"',
            "detectors": [{"id": "pii"}],
            "effect": "deny",
        },
        {
            "stages": ["prompt", "response"],
            "detectors": [{"id": "pii"}, {"id": "secrets"}],
            "effect": "redact",
        },
        {"when": "call.max_tokens > 100000", "effect": "route", "route_to": "cheap"},
    ]
    policies = [
        Policy.model_validate({"kind": "Policy", "metadata": {"name": f"p{number}"}, **fields})
        for number, fields in enumerate(documents)
    ]
    return PolicyEngine.compile(ConfigDocument.of(policies)).select("acme", "", "k", "m")


def chunks(pieces: list[str], field: str = "content") -> list[dict[str, Any]]:
    """Return a stream's chunks of one field."""
    deltas: list[dict[str, Any]] = [
        {field: piece}
        if field == "content"
        else {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        for piece in pieces
    ]
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return [{**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]


def main() -> None:
    """Measure and print."""
    scanner = Scanner(dict.fromkeys((*PII, *SECRETS), 0.5))
    chosen, facts = three_policies(), CallFacts(tenant="acme", model="m")
    small = {"messages": [{"role": "user", "content": PROSE[:150]}]}
    large = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROSE}]}
    finding = {"messages": [{"role": "user", "content": FOUND}]}
    words = re.findall(r" ?\S+", PROSE)
    written = json.dumps({"text": PROSE})
    parts = [written[start : start + 5] for start in range(0, len(written), 5)]
    numbers = [f" {number * 37 % 1_000}" for number in range(400)]
    prose, arguments, table = chunks(words), chunks(parts, "tool"), chunks(numbers)

    def stream(sequence: list[dict[str, Any]]) -> None:
        guard = chosen.response_guard(facts, "chat", True)
        assert guard is not None
        for chunk in sequence:
            guard.feed(chunk)
        guard.finish()

    program = next(policy.program for policy in chosen.policies if not policy.always)
    reader = Reader(program.references)
    situation = Situation("prompt", "chat", facts, NOTHING)
    activation = DECLARATIONS.activation(
        {**dict(zip(reader.names, reader.read(situation), strict=True)), "data.classes": []}
    )
    rows = {
        "one condition, activation reused": cost(lambda: program.evaluate_in(activation), 2_000),
        "scan 228 B of prose, nothing found": cost(lambda: scanner.resolve(PROSE[:228]), 2_000),
        "scan 10 kB of prose, nothing found": cost(lambda: scanner.resolve(PROSE), 500),
        "scan 10 kB of numbers": cost(lambda: scanner.resolve(DIGITS), 10),
        "scan 10 kB with three matches": cost(lambda: scanner.resolve(PROSE[:9_900] + FOUND), 100),
        "prompt stage, three policies, 228 B body": cost(lambda: chosen.prompt(facts, small, "chat"), 2_000),
        "prompt stage, three policies, 10 kB body": cost(lambda: chosen.prompt(facts, large, "chat"), 500),
        "prompt stage, three matches redacted": cost(lambda: chosen.prompt(facts, finding, "chat"), 200),
        "stream chunk, prose": cost(lambda: stream(prose), 3, len(words)),
        "stream chunk, tool arguments": cost(lambda: stream(arguments), 3, len(parts)),
        "stream chunk, a table of numbers": cost(lambda: stream(table), 3, len(numbers)),
    }
    print("policies: µs of CPU, best of", ROUNDS)
    for name, value in rows.items():
        print(f"  {name:<45}{value:>9.1f}")


if __name__ == "__main__":
    main()
