"""Redaction of streams against redaction of the whole: N random documents (10,000 unless told), 0 differences expected.

Documents have several choices, reasoning, refusals and interleaved tool calls with escapes; chunks are cut anywhere,
between the halves of a surrogate pair too. ``python bench/redaction.py [DOCUMENTS] [SEED]``.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from airi.config.document import ConfigDocument
from airi.config.kinds import Policy
from policies.engine import CallFacts, PolicyEngine, PolicySet
from tests.policies import documents_random as documents


def policies() -> PolicySet:
    """Return a redacting policy with every detector."""
    policy = Policy.model_validate(
        {
            "kind": "Policy",
            "metadata": {"name": "everything"},
            "stages": ["response"],
            "effect": "redact",
            "detectors": [{"id": "pii"}, {"id": "secrets"}, {"id": "words", "words": documents.WORDS}],
        }
    )
    return PolicyEngine.compile(ConfigDocument.of([policy])).select("t", "", "k", "m")


def difference(chosen: PolicySet, seed: int) -> str:
    """Return what differs for one seed, or nothing."""
    rng = random.Random(seed)
    answer = documents.whole_answer(rng)
    facts = CallFacts(tenant="t")
    guard = chosen.response_guard(facts, "chat", False)
    streaming = chosen.response_guard(facts, "chat", True)
    assert guard is not None
    assert streaming is not None
    whole = documents.fields(guard.whole(answer))
    chunks = [
        out for chunk in documents.stream_of(rng, answer) for out in streaming.feed(chunk)
    ] + streaming.finish()
    streamed = documents.joined(chunks)
    if whole != streamed:
        return f"seed {seed}: {[(k, whole.get(k), streamed.get(k)) for k in whole | streamed if whole.get(k) != streamed.get(k)]!r}"
    if guard.decision.detections != streaming.decision.detections:
        return f"seed {seed}: counted {guard.decision.detections} whole, {streaming.decision.detections} streamed"
    return ""


def main() -> int:
    """Run and print; return the number of differing documents, at most 1."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    chosen, since = policies(), time.process_time()
    found = [told for seed in range(first, first + count) if (told := difference(chosen, seed))]
    for told in found[:3]:
        print(told[:2_000])
    print(
        f"redaction: {count} random documents, {len(found)} differ from the whole ({time.process_time() - since:.0f} s CPU)"
    )
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
