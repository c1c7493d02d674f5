"""Configuration from files: what discovery adopted, and the user's own, taken in at start and whenever they change."""

from __future__ import annotations

import logging
from pathlib import Path

from airi.config.loader import load_files
from airi.config.store import ConfigStore
from airi.errors import AiriError
from airi.settings import Settings

_log = logging.getLogger("airi.control.files")


class ConfigFiles:
    """Applies files to the store; files that are refused change nothing, and the log names file, line and key."""

    def __init__(self, settings: Settings, store: ConfigStore) -> None:
        self._adopted = settings.home / "adopted.yaml"
        self._config = settings.config
        self._store = store
        self._seen: dict[Path, int] = {}
        self.problem = ""
        """Why the newest files are not in force; empty when they are."""

    def take(self) -> None:
        """Apply whatever changed since the last call."""
        try:
            if self._changed(self._adopted):
                self._apply(self._adopted, "adopted")
            if self._config is not None and self._changed(self._config):
                self._apply(self._config, "file")
        except AiriError as error:
            self.problem = error.message
            _log.error("the configuration is refused, the one before goes on: %s", error.message)

    def _changed(self, path: Path) -> bool:
        stamp = _stamp(path)
        if stamp == self._seen.get(path, 0):
            return False
        self._seen[path] = stamp
        return True

    def _apply(self, path: Path, manager: str) -> None:
        # A file takes away what it brought itself, never what somebody applied from elsewhere with `airi apply`.
        result = self._store.apply(
            load_files([path]) if path.exists() else [],
            author=f"file {path.name}", manager="adopted" if manager == "adopted" else "file",
            prune=manager == "adopted", prune_own=manager != "adopted", comment=f"read from {path.name}",
        )  # fmt: skip
        self.problem = ""
        for warning in result.warnings:
            _log.warning("%s", warning)


def _stamp(path: Path) -> int:
    """Return a number that changes when the file, or a YAML file in the folder, changes; 0 when there is none."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml"))
        return hash(tuple((str(p), _stamp(p)) for p in files))
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    return hash((status.st_mtime_ns, status.st_size, status.st_ino))
