"""Detectors of personal data, secrets and words: linear in the text, the same for a whole text and a stream of it."""

from policies.detectors.scanner import Scanner, resolve
from policies.detectors.spans import DETECTORS, LABELS, Candidate
from policies.detectors.words import Words

__all__ = ["DETECTORS", "LABELS", "Candidate", "Scanner", "Words", "resolve"]
