"""YAML text to plain data with line numbers, within bounds.

libyaml reads the events; the rest is ours, for three reasons: every key's line is kept; plain scalars mean what YAML 1.2's
core schema says (``off`` and ``no`` are words, not falsehoods); and what a file may cost is bounded: its bytes, its depth,
its documents, and the values that aliases unfold to ("billion laughs").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from airi.config.positions import Mark

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 64
MAX_DOCUMENTS = 100_000
MAX_VALUES = 4_000_000
_MERGE = "<<"
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_Loader = getattr(yaml, "CLoader", yaml.Loader)


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its data and where each part stands."""

    value: Any
    mark: Mark


class _StopError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(slots=True)
class _Node:
    value: Any
    mark: Mark
    size: int


def compose(text: str, file: str) -> tuple[list[Document], list[str]]:
    """Return the documents of ``text`` and everything wrong with it as YAML (``file:line: what``)."""
    if len(text) > MAX_BYTES:
        return [], [f"{file}: larger than {MAX_BYTES // 1024 // 1024} MiB; split it into several files"]
    composer = _Composer(file)
    documents: list[Document] = []
    try:
        for document in composer.documents(yaml.parse(text, Loader=_Loader)):
            documents.append(document)  # noqa: PERF402  # what was read before an error counts
    except _StopError as error:
        composer.complain(error.line, str(error))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # Not str(error): that quotes the line, which may hold what must not be printed.
        composer.complain(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem or error.context}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        composer.complain(line, f"not valid YAML: {error.reason}")
    return documents, composer.problems


def resolve_plain(text: str) -> Any:
    """Return what a plain scalar means under YAML 1.2's core schema; infinities and NaN stay words."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "-+.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if abs(number) != float("inf") else text
    return text


class _Composer:
    """Builds the values of one file from its events."""

    def __init__(self, file: str) -> None:
        self.problems: list[str] = []
        self._file = file
        self._anchors: dict[str, _Node] = {}
        self._values = 0

    def complain(self, line: int, message: str) -> None:
        """Note a problem of this file."""
        self.problems.append(f"{self._file}:{line}: {message}")

    def documents(self, events: Iterator[yaml.Event]) -> Iterator[Document]:
        """Yield the documents; raises :class:`_StopError` at a bound."""
        count = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > MAX_DOCUMENTS:
                    raise _StopError(_line(event), f"more than {MAX_DOCUMENTS} documents in one file")
                self._anchors = {}
                node = self._node(next(events), events, 0)
                yield Document(node.value, node.mark)

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> _Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, line)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if depth > MAX_DEPTH:
            raise _StopError(line, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(self._scalar(event, line), Mark(line), 1)
        else:
            if event.tag is not None and event.tag != "!":
                self.complain(line, f"tags such as {event.tag} are not supported")
            mapping = isinstance(event, yaml.MappingStartEvent)
            node = (self._mapping if mapping else self._sequence)(events, depth, line)
        self._count(1, line)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent, line: int) -> _Node:
        node = self._anchors.get(event.anchor or "")
        if node is None:
            self.complain(line, f"*{event.anchor} names no anchor above it")
            return _Node(None, Mark(line), 1)
        self._count(node.size, line)
        return _Node(node.value, Mark(line, node.mark.inside), node.size)

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _StopError(line, f"aliases unfold to more than {MAX_VALUES:,} values")

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Any:
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:str"):
            self.complain(line, f"tags such as {event.tag} are not supported; write the plain value")
        return resolve_plain(event.value) if event.implicit[0] and event.tag is None else event.value

    def _sequence(self, events: Iterator[yaml.Event], depth: int, line: int) -> _Node:
        values: list[Any] = []
        marks: list[Mark] = []
        size = 1
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            node = self._node(event, events, depth + 1)
            values.append(node.value)
            marks.append(node.mark)
            size += node.size
        return _Node(values, Mark(line, marks), size)

    def _mapping(self, events: Iterator[yaml.Event], depth: int, line: int) -> _Node:
        values: dict[str, Any] = {}
        marks: dict[str, Mark] = {}
        merges: list[_Node] = []
        size = 1
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key_line = _line(event)
            key = self._key(event, events, depth)
            node = self._node(next(events), events, depth + 1)
            size += node.size
            if key == _MERGE and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
                merges.append(node)
            elif key in values:
                first = marks[key].line
                self.complain(key_line, f"key {key!r} is given twice in this mapping (first in line {first})")
            elif key is not None:
                values[key] = node.value
                marks[key] = Mark(key_line, node.mark.inside)
        for merged in merges:
            self._merge(merged, values, marks)
        return _Node(values, Mark(line, marks), size)

    def _key(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> str | None:
        if isinstance(event, yaml.ScalarEvent):
            return str(event.value)  # 1 and on are names here: JSON has no other keys
        node = self._node(event, events, depth + 1)
        if isinstance(node.value, str):
            return node.value
        self.complain(_line(event), "a key must be a word, not a list or a mapping")
        return None

    def _merge(self, merged: _Node, values: dict[str, Any], marks: dict[str, Mark]) -> None:
        """Fill in what ``<<: *anchor`` or ``<<: [*a, *b]`` brings; keys given in the mapping itself win."""
        sources = [(merged.value, merged.mark)]
        if isinstance(merged.value, list) and isinstance(merged.mark.inside, list):
            sources = list(zip(merged.value, merged.mark.inside, strict=True))
        for value, mark in sources:
            if not isinstance(value, dict) or not isinstance(mark.inside, dict):
                self.complain(merged.mark.line, "'<<' takes a mapping or a list of mappings")
                continue
            for key, item in value.items():
                if key not in values:
                    values[key] = item
                    marks[key] = mark.inside[key]


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return int(event.start_mark.line) + 1
