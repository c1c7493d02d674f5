"""E-mail addresses: what people write, bounded as RFC 5321 bounds it (64 characters before the @, 253 after)."""

from __future__ import annotations

from policies.detectors.characters import ASCII_ALNUM, WORD_LETTERS
from policies.detectors.spans import EMAIL, Candidate

_LOCAL = ASCII_ALNUM | WORD_LETTERS | frozenset("._%+-")
_DOMAIN = ASCII_ALNUM | WORD_LETTERS | frozenset(".-")
_MAX_LOCAL = 64
_MAX_DOMAIN = 253
_MAX_LABEL = 63
_SCORE = 0.95
# "icon@2x.png" is a file; none of these is a top-level domain.
_FILES = frozenset(
    {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html", "htm", "xml", "txt"}
)


def find(text: str, at: int) -> Candidate | None:
    """Return the address around the ``@`` at position ``at``, or ``None``."""
    start, lowest = at, max(0, at - _MAX_LOCAL)
    while start > lowest and text[start - 1] in _LOCAL:
        start -= 1
    while start < at and text[start] in ".-%+":
        start += 1
    if start == at or text[at - 1] == ".":
        return None
    end, highest = at + 1, min(len(text), at + 1 + _MAX_DOMAIN)
    while end < highest and text[end] in _DOMAIN:
        end += 1
    size = _domain_length(text[at + 1 : end])
    return Candidate(start, at + 1 + size, EMAIL, _SCORE) if size else None


def _domain_length(run: str) -> int:
    """Return the length of the longest host name with a top-level domain at the beginning of ``run`` (0: none)."""
    labels: list[str] = []
    for label in run.split("."):
        if not label or len(label) > _MAX_LABEL or label[0] == "-":
            break
        labels.append(label)
        if label[-1] == "-":
            labels[-1] = label.rstrip("-")
            break
    while len(labels) > 1 and not _is_top_level(labels[-1]):
        labels.pop()
    return len(".".join(labels)) if len(labels) > 1 else 0


def _is_top_level(label: str) -> bool:
    lower = label.lower()
    return (len(label) > 1 and label.isalpha() and lower not in _FILES) or lower.startswith("xn--")
