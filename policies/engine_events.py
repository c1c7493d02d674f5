"""Rewriting the events of a Responses stream: what grows by ``….delta`` events is a text of its own.

Each text is told up to four times: in pieces, whole at its end, with its part and item, and with the whole response. It is
judged once, in pieces; where it is told again its redacted form is repeated. What is undecided is held back and comes as a
``….delta`` of its own before the text's end. Events are numbered anew, because some are left out and some are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airi.errors import AiriError
from policies import content
from policies.content import Path, Slot
from policies.detectors import Scanner
from policies.engine_field import Field
from policies.redaction import Judge
from policies.rewriting import void_marks

Event = dict[str, Any]
_MAX_STREAMS = 1_024
_PLACE = ("item_id", "output_index", "content_index", "summary_index")
_TEXTS = ("text", "refusal", "arguments", "input", "code")
_JSON = ("_arguments", "_input")
_TOLD_AGAIN = ("part", "item", "response")


class _Growing:
    """A text on its way: what came, what went out."""

    __slots__ = ("base", "came", "field", "place", "went")

    def __init__(self, base: str, place: Event, field: Field) -> None:
        self.base = base
        self.place = place
        self.field = field
        self.came: list[str] = []
        self.went: list[str] = []

    @property
    def changed(self) -> bool:
        """Whether what went out is no beginning of what came."""
        return not "".join(self.came).startswith("".join(self.went))

    def feed(self, piece: str, *, final: bool = False) -> str:
        self.came.append(piece)
        released = self.field.feed(piece, final)
        self.went.append(released)
        return released


class EventWriter:
    """All texts of one stream. ``redacted`` is asked for texts that are told without having been streamed."""

    def __init__(
        self, scanner: Scanner, judge: Judge, redacted: Callable[[Slot], str], *, blank_logprobs: bool
    ) -> None:
        self._scanner = scanner
        self._judge = judge
        self._redacted = redacted
        self._blank_logprobs = blank_logprobs
        self._growing: dict[tuple[Any, ...], _Growing] = {}
        self._known: dict[tuple[str, bool], str] = {}
        self._number = 0

    def feed(self, event: Event) -> list[Event]:
        """Return what may be sent for one event of the upstream."""
        kind = event.get("type")
        base, _, last = kind.rpartition(".") if isinstance(kind, str) else ("", "", "")
        if self._blank_logprobs and event.get("logprobs"):
            event = {**event, "logprobs": []}
        if last == "delta" and isinstance(event.get("delta"), str):
            out = self._delta(event, base)
        elif last == "done" and (growing := self._growing.get(_key(base, event))) is not None:
            out = [*self._end(growing), self._whole_text(event, growing)]
        elif last == "added" and self._is_void(event, base):
            out = []
        else:
            out = [*self._flush(event), self._told_again(event)]
        return [self._numbered(each) for each in out]

    def _delta(self, event: Event, base: str) -> list[Event]:
        key = _key(base, event)
        growing = self._growing.get(key)
        if growing is None:
            if len(self._growing) >= _MAX_STREAMS:
                raise AiriError(
                    "The upstream's stream has too many fields.", status=502, code="upstream_invalid_answer"
                )
            place = {name: event[name] for name in _PLACE if name in event}
            field = Field(self._scanner, self._judge, base.endswith(_JSON))
            growing = self._growing[key] = _Growing(base, place, field)
        released = growing.feed(event["delta"])
        if not released:
            return []
        return [event if released == event["delta"] else {**event, "delta": released}]

    def _end(self, growing: _Growing) -> list[Event]:
        """Release what is held of a text, and remember what became of it."""
        del self._growing[_key(growing.base, growing.place)]
        rest = growing.feed("", final=True)
        self._known["".join(growing.came), growing.base.endswith(_JSON)] = "".join(growing.went)
        if not rest:
            return []
        more: Event = {"logprobs": []} if growing.base.endswith("output_text") else {}
        return [
            {"type": f"{growing.base}.delta", "sequence_number": 0, **growing.place, "delta": rest, **more}
        ]

    def _whole_text(self, event: Event, growing: _Growing) -> Event:
        json = growing.base.endswith(_JSON)
        changes = {
            name: self._text(Slot((name,), event[name], json))
            for name in _TEXTS
            if isinstance(event.get(name), str)
        }
        return {**event, **changes}

    def _flush(self, event: Event) -> list[Event]:
        """Release what is held of the texts that an event ends: of its item, or of the whole response."""
        item = event.get("item")
        if event.get("type") == "response.output_item.done" and isinstance(item, dict):
            ended = [each for each in self._growing.values() if each.place.get("item_id") == item.get("id")]
        elif isinstance(event.get("response"), dict):
            ended = list(self._growing.values())
        else:
            return []
        return [out for growing in ended for out in self._end(growing)]

    def _told_again(self, event: Event) -> Event:
        """Return an event with its texts redacted, wherever they stand in it."""
        changes: dict[Path, str] = {}
        json = str(event.get("type")).rpartition(".")[0].endswith(_JSON)
        slots = [Slot((name,), event[name], json) for name in _TEXTS if isinstance(event.get(name), str)]
        for name in _TOLD_AGAIN:
            value = event.get(name)
            if name == "response" and isinstance(value, dict):
                slots += content.item_texts(value.get("output"), ("response", "output"))
            elif isinstance(value, dict):
                slots += content.item_texts(value, (name,))
        for slot in slots:
            text = self._text(slot)
            if text != slot.text:
                changes[slot.path] = text
        if not changes:
            return event
        rewritten = content.rewrite(event, changes)
        void_marks(rewritten, changes)
        return rewritten

    def _text(self, slot: Slot) -> str:
        key = (slot.text, slot.json)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._redacted(slot)
        return found

    def _is_void(self, event: Event, base: str) -> bool:
        """Whether an annotation speaks of a text that was redacted: its places are wrong then."""
        if not base.endswith(".annotation"):
            return False
        growing = self._growing.get(_key(base.removesuffix(".annotation"), event))
        return growing is not None and growing.changed

    def _numbered(self, event: Event) -> Event:
        if "sequence_number" in event:
            event = {**event, "sequence_number": self._number}
            self._number += 1
        return event


def _key(base: str, event: Event) -> tuple[Any, ...]:
    return (base, *(event.get(name) for name in _PLACE))
