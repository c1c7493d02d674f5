"""Reading configuration: YAML files, folders, texts and JSON data into checked resources.

All problems of all files come out together, each as ``file:line: Kind/name: path.to.key: what is wrong``.
Checks that need more than one resource are in :mod:`airi.config.validation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from airi.config.composer import MAX_BYTES, compose
from airi.config.explain import did_you_mean, explain
from airi.config.kinds import API_VERSION, KINDS, AnyResource
from airi.config.positions import Mark, Where
from airi.errors import ConfigError

_SUFFIXES = {".yaml", ".yml", ".json"}
_MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class LoadedResource:
    """A resource and where it came from. ``where("path", "to", 0)`` names a place in it."""

    resource: AnyResource
    where: Where

    @property
    def key(self) -> tuple[str, str]:
        """Kind and name."""
        return self.resource.kind, self.resource.metadata.name


def load_files(paths: Iterable[Path]) -> list[LoadedResource]:
    """Read files, and folders with all YAML and JSON files in them; raise :class:`ConfigError` with every problem."""
    loaded: list[LoadedResource] = []
    problems: list[str] = []
    for path in _files(paths, problems):
        try:
            data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
            continue
        if data is None:
            problems.append(
                f"{path}: larger than {MAX_BYTES // 1024 // 1024} MiB; split it into several files"
            )
            continue
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            problems.append(f"{path}:{line}: not UTF-8 text (byte {error.start})")
            continue
        _read(text, str(path), loaded, problems)
    return _finish(loaded, problems)


def load_text(text: str, name: str = "<input>") -> list[LoadedResource]:
    """Read one YAML text; ``name`` stands for its file in messages."""
    loaded: list[LoadedResource] = []
    problems: list[str] = []
    _read(text, name, loaded, problems)
    return _finish(loaded, problems)


def load_data(items: Sequence[Any]) -> list[LoadedResource]:
    """Check plain data, as JSON bodies bring it; messages name no file."""
    loaded: list[LoadedResource] = []
    problems: list[str] = []
    for item in items:
        _check(item, None, None, loaded, problems)
    return _finish(loaded, problems)


def _files(paths: Iterable[Path], problems: list[str]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix in _SUFFIXES
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            ]
            if not inside:
                problems.append(f"{path}: no .yaml, .yml or .json file in this folder")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            problems.append(f"{path}: does not exist")
    if len(found) > _MAX_FILES:
        problems.append(f"more than {_MAX_FILES} files; is this the right folder?")
        return []
    return list(dict.fromkeys(found))


def _read(text: str, file: str, loaded: list[LoadedResource], problems: list[str]) -> None:
    documents, faults = compose(text, file)
    problems += faults
    for document in documents:
        if document.value is not None:
            _check(document.value, file, document.mark, loaded, problems)


def _check(
    value: Any, file: str | None, mark: Mark | None, loaded: list[LoadedResource], problems: list[str]
) -> None:
    """Check one resource and add it to ``loaded``, or what is wrong with it to ``problems``."""
    if not isinstance(value, dict):
        problems.append(
            f"{Where('', '', file, mark)()}: expected a mapping with apiVersion, kind and metadata"
        )
        return
    kind = value.get("kind")
    where = Where(kind if isinstance(kind, str) else "", _name(value), file, mark)
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        problems.append(_unknown_kind(value, where))
        return
    if "apiVersion" not in value and "api_version" not in value:
        problems.append(f"{where('apiVersion')}: is missing; write 'apiVersion: {API_VERSION}'")
    try:
        resource = model.model_validate(value)
    except ValidationError as error:
        problems += explain(error, model, where)
        return
    loaded.append(LoadedResource(resource, where))


def _unknown_kind(value: dict[str, Any], where: Where) -> str:
    kinds = ", ".join(KINDS)
    kind = value.get("kind")
    place = Where("", "", where.file, where.mark)
    if kind is None:
        return f"{place('kind')}: is missing; one of {kinds}"
    if not isinstance(kind, str):
        return f"{place('kind')}: expected one of {kinds}"
    return f"{place('kind')}: unknown kind {kind[:60]!r}" + (did_you_mean(kind, KINDS) or f"; one of {kinds}")


def _name(value: dict[str, Any]) -> str:
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name[:128] if isinstance(name, str) else ""


def _finish(loaded: list[LoadedResource], problems: list[str]) -> list[LoadedResource]:
    first: dict[tuple[str, str], LoadedResource] = {}
    for item in loaded:
        earlier = first.setdefault(item.key, item)
        if earlier is not item:
            place = Where("", "", earlier.where.file, earlier.where.mark)()
            problems.append(f"{item.where('metadata', 'name')}: is defined twice (first in {place})")
    if problems:
        raise ConfigError(problems)
    return loaded
