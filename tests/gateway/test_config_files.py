"""Files beside the control plane: what they take away, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi.config.loader import load_data, load_files
from airi.config.store import ConfigStore
from airi.database import open_engine
from airi.settings import Settings
from airi.storage import prepare
from gateway.control.files import ConfigFiles


def tenant(name: str, weight: float = 1) -> str:
    return f"apiVersion: airi/v1alpha1\nkind: Tenant\nmetadata: {{name: {name}}}\nweight: {weight}\n"


@pytest.fixture
def store(home: Path) -> ConfigStore:
    engine = open_engine(f"sqlite:///{home / 'airi.db'}", full_sync=False)
    prepare(engine)
    return ConfigStore(engine)


def names(store: ConfigStore) -> list[str]:
    return [name for _, name in sorted(store.current().resources)]


def write(path: Path, *documents: str) -> None:
    path.write_text("---\n".join(documents))


def test_a_file_takes_away_what_it_brought_and_nothing_else(home: Path, store: ConfigStore) -> None:
    path = home / "airi.yaml"
    write(path, tenant("a"), tenant("b"))
    files = ConfigFiles(Settings(home=home, config=path), store)
    files.take()
    applied = load_data([{"apiVersion": "airi/v1alpha1", "kind": "Tenant", "metadata": {"name": "other"}}])
    store.apply(applied, author="admin", manager="file")
    write(path, tenant("a", 2))
    files.take()
    assert names(store) == ["a", "other"]
    # A new process remembers as much: what a file brought stands in the store.
    again = ConfigFiles(Settings(home=home, config=path), store)
    write(path, tenant("c"))
    again.take()
    assert names(store) == ["c", "other"]
    path.unlink()
    again.take()
    assert names(store) == ["other"]


def test_what_was_applied_over_a_files_resource_belongs_to_who_applied_it(
    home: Path, store: ConfigStore
) -> None:
    path = home / "airi.yaml"
    write(path, tenant("a"), tenant("b"))
    files = ConfigFiles(Settings(home=home, config=path), store)
    files.take()
    write(home / "other.yaml", tenant("b", 3))
    store.apply(load_files([home / "other.yaml"]), author="admin", manager="file")
    write(path, tenant("a"))
    files.take()
    assert names(store) == ["a", "b"]


def test_a_refused_file_changes_nothing_and_says_why(home: Path, store: ConfigStore) -> None:
    path = home / "airi.yaml"
    write(path, tenant("a"))
    files = ConfigFiles(Settings(home=home, config=path), store)
    files.take()
    write(path, tenant("a", -1))
    files.take()
    assert "airi.yaml:4" in files.problem
    assert names(store) == ["a"]
    assert store.current().version == 1
