"""The sections of ``make bench`` and the page they are written into."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Section:
    """A measurement: what it shows and the command that makes it."""

    title: str
    command: tuple[str, ...]
    says: str
    by_default: bool = True
    """Whether it is measured when no section is named; what needs more than AIRI is not."""


SECTIONS = {
    "calls": Section(
        "What a call costs", ("-m", "bench.run_calls"),
        "CPU is user and system time of the gateway's processes, pinned to one core, at saturation with 64 connections; Redis, "
        "writer, control plane, mock upstream and load generator share the other core. `…_bare` is a bare forwarder on the same HTTP "
        "server and client in the same round, `ratio_…` the quotient. Every counted call is checked to have one settlement, one "
        "set of decisions and one record. All stages are on: a key, limits at five scopes in Redis, ten policies, the route, usage, the record. "
        "Of the memory, `…_own_mb` is what one more gateway process adds; the rest are pages of libraries that all processes share.",
    ),
    "stages": Section(
        "Where the microseconds go", ("-m", "bench.stages"),
        "Each stage of the pipeline without sockets, the best of many slices; the rest of a call is the HTTP server and client, Redis' "
        "connection and the kernel.",
    ),
    "budget": Section(
        "One hard budget under fire", ("-m", "bench.budget_race"),
        "Four gateway processes, 200 callers each: whole answers, streams, callers that leave, an upstream that ignores `max_tokens` and lies "
        "about its usage, one process killed. Overspend is measured against what was sent and promised; what the upstream added on "
        "its own is shown by cause.",
    ),
    "interleavings": Section(
        "Admission under random interleavings", ("-m", "bench.interleavings", "--seeds", "10000"),
        "Callers, crashes between any two commands, the reaper, late settlements, lost epochs, against a real Redis with a steered clock; "
        "every seed can be replayed.",
    ),
    "redaction": Section(
        "Redaction of streams", ("bench/redaction.py", "10000"),
        "Random documents (escapes, several choices, interleaved tools, split surrogates) in random chunks, compared with redacting the whole.",
    ),
    "fairness": Section(
        "Fair shares of a full pool", ("-m", "bench.lab"),
        "VTC's cases in virtual time with the production queue, pool and choice on the simulated engine; the gap is measured while both "
        "tenants wait.",
    ),
    "replica": Section(
        "A replica killed", ("-m", "bench.replica_kill"),
        "SIGKILL of a simulated replica under 100 calls in flight; what counts is errors before the first byte.",
    ),
    "steps": Section("Workflow steps", ("-m", "bench.engine_steps"), "Steps that do nothing, on SQLite and PostgreSQL."),
    "scale": Section(
        "A large configuration", ("-m", "bench.config_scale"), "100,000 keys, 1,000 tenants, 1,000 policies under a steady load of calls.",
    ),
    "load": Section(
        "A thousand callers, and for long", ("-m", "bench.run_load"),
        "1,000 callers at once against an upstream that takes 60 ms, as a steady crowd (`calls_…`) and all in one moment (`burst_…`), and 1,000 streams at once; more calls "
        "than `AIRI_MAX_CALLS` lets in (`refused_…` is how long a refusal takes, `admitted_…` how the others fare); one gateway process and two "
        "on the same port; 200,000 calls and 20,000 streams with the memory of the gateway before, between and after. A crowd of 1,000 is answered at "
        "the rate that two cores give, which is what its latency shows.",
    ),
    "peers": Section(
        "Beside other gateways", ("-m", "bench.run_peers"),
        "`make bench-peers` installs each into an environment of its own and measures all of them in the same interleaved rounds: the gateway "
        "pinned to one core, mock upstream, load generator and Redis on the other; CPU is user and system time of all of a gateway's processes (AIRI: "
        "of its gateway process; Redis and the writer share the other core) at saturation with 64 connections; added p50 is against the mock asked "
        "directly, with nothing pinned. `saturated`: it cannot do that many calls a second, so that a queue would be measured. What each does with a call differs much "
        "and stands under the table; a peer that could not be measured is named with the reason.",
        by_default=False,
    ),
}  # fmt: skip

_HEAD = """# Performance

`make bench` measures everything on this page, on one machine without anything else to install; `python -m bench SECTION …` measures parts
of it, `--write` writes this page. Absolute times are those of the machine named with each section: a shared two-core machine, whose speed varies by
a factor of three from minute to minute. Compare ratios and counts; run it yourself for times.

What falls short stays in the tables. Above all: **a whole call costs three times its goal of CPU on this machine**, and with it the added latency at 1,000 calls a second and
the latency of 1,000 callers at once, where gateway, Redis, load and mock share two cores. The goals are those of a faster machine: in the same rounds the routers written in Rust, which do
none of a call's keys, limits, policies, prices and records, cost four to six times what they cost there, and AIRI 1.6 to 2 times as much as they do. Of an AIRI call about 100 µs are the
Python of its stages when caches are warm (`stages`), 50 µs a bare forward on the same HTTP server and client; the rest is Redis' connection, and both with caches that other
work has emptied. No single stage is to blame: less Python in a call, not a faster library, is what remains to be done.
"""


def write_page() -> None:
    """Write docs/performance.md from docs/figures/*.json."""
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        path = ROOT / "docs" / "figures" / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        parts.append(f"## {section.title}\n\n{section.says}\n\n`{result['command']}` — {result['machine']}, {result['took_s']} s"
                     + ("" if result["ok"] else "; **it did not reach what it checks**") + "\n\n" + _body(result["output"]))  # fmt: skip
    (ROOT / "docs" / "performance.md").write_text("\n".join(parts))


def _body(output: str) -> str:
    """Return tables as they are and everything else as it was printed."""
    lines = [line for line in output.split("\n") if not line.startswith(("{", "["))]
    data = [line for line in output.split("\n") if line.startswith(("{", "["))]
    tables = "\n".join(line for line in lines if line.startswith("|"))
    plain = "\n".join(line for line in lines if line and not line.startswith("|"))
    text = f"{tables}\n\n" if tables else ""
    if plain:
        text += f"```text\n{plain}\n```\n\n"
    if data and not tables and not plain:
        text += "```json\n" + "\n".join(json.dumps(json.loads(line), indent=1) for line in data) + "\n```\n"
    return text
