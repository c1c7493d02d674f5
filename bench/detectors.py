"""Precision and recall of the detectors on labelled sentences (needs AIRI_BENCH_DATA; see docs/policies.md).

A labelled span counts as found when a match of its class overlaps it; a match that overlaps no span of its class is a
false positive. ``--misses`` prints what was missed and what was wrongly found.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from policies.detectors import Scanner
from policies.detectors.spans import CARD, EMAIL, IBAN, PHONE, PII, SECRETS

FILE = "presidio_research_synth_v2.json"
CLASSES = {EMAIL: "EMAIL_ADDRESS", CARD: "CREDIT_CARD", IBAN: "IBAN_CODE", PHONE: "PHONE_NUMBER"}


def main() -> int:
    """Print a table; return 0, or 1 when the data is missing."""
    path = Path(os.environ.get("AIRI_BENCH_DATA", "../shared/data")) / FILE
    if not path.exists():
        print(f"detectors: {path} is missing; set AIRI_BENCH_DATA to the folder that holds it")
        return 1
    documents = json.loads(path.read_text())
    scanner = Scanner(dict.fromkeys((*PII, *SECRETS), 0.5))
    counts = {name: [0, 0, 0] for name in (*CLASSES, *SECRETS)}
    for document in documents:
        _score(document, scanner, counts, "--misses" in sys.argv)
    print(f"{len(documents)} sentences, least score 0.5")
    print(f"{'class':<20}{'labelled':>9}{'found':>7}{'false':>7}{'precision':>11}{'recall':>8}")
    for name, (hit, missed, false) in counts.items():
        precision = hit / (hit + false) if hit + false else float("nan")
        recall = hit / (hit + missed) if hit + missed else float("nan")
        print(f"{name:<20}{hit + missed:>9}{hit:>7}{false:>7}{precision:>11.3f}{recall:>8.3f}")
    return 0


def _score(document: dict, scanner: Scanner, counts: dict[str, list[int]], show: bool) -> None:
    text = document["full_text"]
    found = scanner.resolve(text)
    for name, tally in counts.items():
        wanted = [
            (span["start_position"], span["end_position"])
            for span in document["spans"]
            if span["entity_type"] == CLASSES.get(name)
        ]
        matches = [match for match in found if match.name == name]
        for start, end in wanted:
            hit = any(match.start < end and start < match.end for match in matches)
            tally[0 if hit else 1] += 1
            if show and not hit:
                print(
                    "missed",
                    name,
                    repr(
                        text[max(0, start - 40) : start]
                        + "<<"
                        + text[start:end]
                        + ">>"
                        + text[end : end + 12]
                    ),
                )
        for match in matches:
            if not any(match.start < end and start < match.end for start, end in wanted):
                tally[2] += 1
                if show:
                    print("false ", name, repr(text[max(0, match.start - 40) : match.end + 12]), match.score)


if __name__ == "__main__":
    sys.exit(main())
