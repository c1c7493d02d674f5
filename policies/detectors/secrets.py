"""Secrets: keys with a known beginning, signed tokens, private key blocks, and values after a telling name."""

from __future__ import annotations

import math
import string
from collections import Counter
from typing import NamedTuple

from policies.detectors.characters import ALNUM, VALUE, run_end
from policies.detectors.spans import KEY, LOOK_AHEAD, PASSWORD, PRIVATE_KEY, TOKEN, Candidate

# Runs that a match may continue in without a bound; a stream swallows them (see policies.redaction.text).
_RUNS = {
    "key": ALNUM + "_-",
    "dotted": ALNUM + "_-.",
    "value": VALUE,
    "pem": ALNUM + "+/=:,- \t\r\n\\",
}
HIT = 8
"""Characters after the known beginning that the prefilter has seen."""


class KeyKind(NamedTuple):
    """A key's beginning, the run of its rest, how long the rest is at least, and whether it must hold a digit."""

    prefix: str
    run: str
    minimum: int
    digit: bool = False


KEYS = (
    KeyKind("AKIA", "key", 16),
    KeyKind("ASIA", "key", 16),
    KeyKind("sk-", "key", 20, digit=True),
    KeyKind("sk_live_", "key", 16),
    KeyKind("sk_test_", "key", 16),
    KeyKind("rk_live_", "key", 16),
    KeyKind("rk_test_", "key", 16),
    KeyKind("whsec_", "key", 24),
    KeyKind("ghp_", "key", 36),
    KeyKind("gho_", "key", 36),
    KeyKind("ghu_", "key", 36),
    KeyKind("ghs_", "key", 36),
    KeyKind("ghr_", "key", 36),
    KeyKind("github_pat_", "key", 40),
    KeyKind("glpat-", "key", 20),
    KeyKind("glsa_", "key", 32),
    KeyKind("xoxb-", "key", 20),
    KeyKind("xoxp-", "key", 20),
    KeyKind("xoxa-", "key", 20),
    KeyKind("xoxs-", "key", 20),
    KeyKind("xoxr-", "key", 20),
    KeyKind("xapp-", "key", 20),
    KeyKind("AIza", "key", 35),
    KeyKind("ya29.", "dotted", 20, digit=True),
    KeyKind("hf_", "key", 30),
    KeyKind("gsk_", "key", 40),
    KeyKind("r8_", "key", 30),
    KeyKind("npm_", "key", 36),
    KeyKind("pypi-", "key", 50),
    KeyKind("dckr_pat_", "key", 20),
    KeyKind("SG.", "dotted", 60),
    KeyKind("shpat_", "key", 32),
    KeyKind("shpss_", "key", 32),
    KeyKind("dop_v1_", "key", 40),
    KeyKind("lin_api_", "key", 32),
    KeyKind("PMAK-", "key", 40),
    KeyKind("xai-", "key", 40, digit=True),
    KeyKind("pplx-", "key", 32, digit=True),
    KeyKind("tvly-", "key", 20, digit=True),
    KeyKind("AGE-SECRET-KEY-1", "key", 40),
    KeyKind("airi_", "key", 40),
    KeyKind("airirun_", "dotted", 32),
)
NAMES = (
    "password|passwd|passphrase|pwd|secret|api[_-]?key|apikey|accountkey|access[_-]?key|private[_-]?key|"
    "signing[_-]?key|token|credential"
)
_DECIDED = 64  # characters of a value that decide whether it is a secret
_SEGMENT = 512  # characters of a signed token's header, at most
_HEADER = "-----BEGIN"
_HEADER_LENGTH = 80
_FOOTER = "-----END"
FOOTER_LENGTH = 64
"""The longest footer; what a stream keeps of a swallowed block so that it recognises one."""


def find_key(text: str, start: int, kind: KeyKind) -> Candidate | None:
    """Return the key of ``kind`` that begins at ``start``, or ``None`` when its rest is too short."""
    begin = start + len(kind.prefix)
    end = run_end(text, begin, _RUNS[kind.run], LOOK_AHEAD - len(kind.prefix))
    if end - begin < kind.minimum:
        return None
    if kind.digit and not any(char in string.digits for char in text[begin : min(end, begin + _DECIDED)]):
        return None
    return Candidate(start, end, KEY, 0.95, kind.run)


def find_token(text: str, start: int) -> Candidate | None:
    """Return the JSON Web Token (RFC 7519) that begins at ``start``, or ``None``."""
    dot = run_end(text, start, _RUNS["key"], _SEGMENT)
    if not text.startswith(".eyJ", dot) or run_end(text, dot + 1, _RUNS["key"], HIT) < dot + 1 + HIT:
        return None
    return Candidate(start, run_end(text, start, _RUNS["dotted"], LOOK_AHEAD), TOKEN, 0.95, "dotted")


def find_value(text: str, start: int) -> Candidate | None:
    """Return the value at ``start`` (after ``password: `` and the like) when it looks random enough, or ``None``."""
    decided = text[start : run_end(text, start, VALUE, _DECIDED)]
    letters = sum(char.isalpha() for char in decided)
    if not letters or letters == len(decided):
        return None
    if _entropy(decided) < (2.5 if len(decided) < 20 else 3.0):
        return None
    return Candidate(start, run_end(text, start, VALUE, LOOK_AHEAD), PASSWORD, 0.6, "value")


def find_url_password(text: str, at: int) -> Candidate | None:
    """Return the password of ``scheme://user:password@host`` whose ``@`` is at ``at``."""
    colon = text.rfind(":", max(0, at - 65), at)
    return Candidate(colon + 1, at, PASSWORD, 0.8) if 0 <= colon < at - 1 else None


def find_private_key(text: str, header_end: int) -> Candidate | None:
    """Return the private key block whose ``-----BEGIN …-----`` ends at ``header_end``, as far as it reaches."""
    start = text.rfind(_HEADER, max(0, header_end - _HEADER_LENGTH), header_end)
    if start == -1:
        return None
    end, _ = _private_key_end(text, header_end, start + LOOK_AHEAD)
    return Candidate(start, end, PRIVATE_KEY, 1.0, "pem")


def extend(text: str, candidate: Candidate) -> tuple[int, bool]:
    """Return where an accepted open match really ends in ``text``, and whether more text could not extend it."""
    if candidate.open == "pem":
        body = text.find("-----", candidate.start + len(_HEADER)) + 5
        return _private_key_end(text, body, len(text))
    return swallow(text, candidate.end, candidate.open)


def swallow(text: str, position: int, run: str) -> tuple[int, bool]:
    """Return where ``run`` ends from ``position``, and whether more text could not extend it."""
    if run == "pem":
        return _private_key_end(text, position, len(text))
    end = run_end(text, position, _RUNS[run], len(text))
    return end, end < len(text)


def _private_key_end(text: str, position: int, highest: int) -> tuple[int, bool]:
    """Return where a block's body from ``position`` ends (behind its footer, if there is one), and whether it did."""
    limit = run_end(text, position, _RUNS["pem"], highest - position)
    footer = text.find(_FOOTER, position, limit)
    while footer != -1:
        close = text.find("-----", footer + len(_FOOTER), min(limit, footer + FOOTER_LENGTH))
        if close != -1:
            return close + 5, True
        footer = text.find(_FOOTER, footer + 1, limit)
    return limit, limit < len(text)


def _entropy(text: str) -> float:
    """Return Shannon's entropy in bits a character."""
    size = len(text)
    return -sum(count / size * math.log2(count / size) for count in Counter(text).values())
