"""Errors of the simulated engine."""

from __future__ import annotations

from airi.errors import InvalidRequestError


class SequenceTooLongError(InvalidRequestError):
    """Prompt and answer together exceed the engine's memory or context."""

    code = "context_length_exceeded"

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"This model's maximum context length is {limit} tokens, but {tokens} were asked for. "
            "Shorten the messages or lower max_tokens."
        )
