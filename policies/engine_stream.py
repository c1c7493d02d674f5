"""Rewriting the chunks of a stream: each field of each choice is a text of its own.

What is undecided is held back and comes with a later chunk of the same choice, at the latest just before its
``finish_reason``. A chunk that would say nothing any more is left out. Unknown fields pass untouched.
"""

from __future__ import annotations

from typing import Any

from airi.errors import AiriError
from policies.content import TEXT_FIELDS
from policies.detectors import Scanner
from policies.engine_blocks import BlockWriter
from policies.engine_field import Field
from policies.redaction import Judge

Chunk = dict[str, Any]
_MAX_STREAMS = 1_024
_REPEATED = ("id", "object", "created", "model", "system_fingerprint", "service_tier")


class ChunkWriter:
    """All fields of all choices of one stream."""

    def __init__(self, scanner: Scanner, judge: Judge, *, blank_logprobs: bool) -> None:
        self._scanner = scanner
        self._judge = judge
        self._blank_logprobs = blank_logprobs
        self._fields: dict[tuple[Any, ...], Field] = {}
        self._blocks = BlockWriter(scanner, judge)
        self._choices: set[Any] = set()
        """Choices that have blocks."""
        self._frame: Chunk = {}

    def feed(self, chunk: Chunk) -> list[Chunk]:
        """Return what may be sent for one chunk of the upstream."""
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return [chunk]
        self._frame = chunk
        before: list[Chunk] = []
        written = [self._choice(choice, before) if isinstance(choice, dict) else choice for choice in choices]
        if all(new is old for new, old in zip(written, choices, strict=True)):
            return [*before, chunk]
        kept = [choice for choice in written if choice is not None]
        if not kept and not chunk.get("usage"):
            return before
        return [*before, {**chunk, "choices": kept}]

    def finish(self) -> list[Chunk]:
        """Return what is still held, for a stream that ended without saying why."""
        out: list[Chunk] = []
        for index in sorted({key[0] for key in self._fields} | self._choices):
            self._flush(index, set(), out)
        return out

    def _choice(self, choice: Chunk, before: list[Chunk]) -> Chunk | None:
        """Return the choice to send (the same object when nothing changed), or ``None`` when nothing is left of it."""
        index = choice.get("index", 0)
        final = choice.get("finish_reason") is not None
        used: set[tuple[Any, ...]] = set()
        written = choice
        delta = choice.get("delta")
        if isinstance(delta, dict):
            new_delta = self._delta(delta, index, final, used)
            if new_delta is not delta:
                written = {**choice, "delta": new_delta}
        text = choice.get("text")
        if isinstance(text, str) and text:
            released = self._feed((index, "text"), text, final, used)
            if released != text:
                written = {**written, "text": released}
        if self._blank_logprobs and choice.get("logprobs") is not None:
            written = {**written, "logprobs": None}
        if final:
            self._flush(index, used, before)
        return written if written is choice or final or _says_something(written) else None

    def _delta(self, delta: Chunk, index: Any, final: bool, used: set[tuple[Any, ...]]) -> Chunk:
        changes: Chunk = {}
        for name in TEXT_FIELDS:
            piece = delta.get(name)
            if isinstance(piece, str) and piece:
                released = self._feed((index, name), piece, final, used)
                if released != piece:
                    changes[name] = released
        if "thinking_blocks" in delta or "reasoning_details" in delta:
            changes |= self._blocks.feed(delta, index, final=final)
            self._choices.add(index)
        calls = delta.get("tool_calls")
        if isinstance(calls, list) and calls:
            new_calls = [self._call(call, index, number, final, used) for number, call in enumerate(calls)]
            if any(new is not old for new, old in zip(new_calls, calls, strict=True)):
                changes["tool_calls"] = new_calls
        legacy = delta.get("function_call")
        if isinstance(legacy, dict):
            new = self._inner(legacy, "arguments", (index, "function_call"), final, used)
            if new is not legacy:
                changes["function_call"] = new
        return {**delta, **changes} if changes else delta

    def _call(self, call: Any, index: Any, position: int, final: bool, used: set[tuple[Any, ...]]) -> Any:
        if not isinstance(call, dict):
            return call
        number = call.get("index", position)
        for kind, name in (("function", "arguments"), ("custom", "input")):
            inner = call.get(kind)
            if isinstance(inner, dict):
                new = self._inner(inner, name, (index, "tool_calls", number, kind, name), final, used)
                if new is not inner:
                    call = {**call, kind: new}
        return call

    def _inner(
        self, inner: Chunk, name: str, key: tuple[Any, ...], final: bool, used: set[tuple[Any, ...]]
    ) -> Chunk:
        piece = inner.get(name)
        if not isinstance(piece, str) or not piece:
            return inner
        released = self._feed(key, piece, final, used)
        return inner if released == piece else {**inner, name: released}

    def _feed(self, key: tuple[Any, ...], piece: str, final: bool, used: set[tuple[Any, ...]]) -> str:
        field = self._fields.get(key)
        if field is None:
            if len(self._fields) >= _MAX_STREAMS:
                raise AiriError(
                    "The upstream's stream has too many fields.", status=502, code="upstream_invalid_answer"
                )
            json = key[1] in ("tool_calls", "function_call")
            field = self._fields[key] = Field(self._scanner, self._judge, json)
        if final:
            used.add(key)
        return field.feed(piece, final)

    def _flush(self, index: Any, used: set[tuple[Any, ...]], out: list[Chunk]) -> None:
        """Add a chunk with what is held of a choice's other fields, and forget the choice."""
        delta: Chunk = {}
        text = ""
        for key in [key for key in self._fields if key[0] == index]:
            field = self._fields.pop(key)
            rest = "" if key in used else field.feed("", final=True)
            if not rest:
                continue
            if key[1] == "text":
                text = rest
            elif key[1] == "tool_calls":
                delta.setdefault("tool_calls", []).append({"index": key[2], key[3]: {key[4]: rest}})
            elif key[1] == "function_call":
                delta["function_call"] = {"arguments": rest}
            else:
                delta[key[1]] = rest
        if index in self._choices:
            self._choices.discard(index)
            delta.update(self._blocks.flush(index))
        if delta or text:
            choice = {"index": index, "finish_reason": None, **({"text": text} if text else {"delta": delta})}
            frame = {name: self._frame[name] for name in _REPEATED if name in self._frame}
            out.append({**frame, "choices": [choice]})


def _says_something(choice: Chunk) -> bool:
    """Tell whether anything is left of a choice's chunk besides empty texts."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    for name, value in delta.items():
        if name == "tool_calls" and isinstance(value, list):
            if any(_call_says_something(call) for call in value):
                return True
        elif name == "function_call" and isinstance(value, dict):
            if any(value.values()):
                return True
        elif value:
            return True
    return False


def _call_says_something(call: Any) -> bool:
    if not isinstance(call, dict) or call.get("id"):
        return True
    return any(any(inner.values()) for inner in call.values() if isinstance(inner, dict))
