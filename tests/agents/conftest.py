"""Fixtures of the agents' tests: the same engine on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine as Database

from agents.tools.functions import Registry
from tests.agents.rig import Rig


@pytest.fixture
def registry() -> Registry:
    """Function tools of one test."""
    return Registry()


@pytest.fixture
def make_rig(any_engine: Database, registry: Registry) -> Iterator[Callable[..., Rig]]:
    """Makes engines over the test's database."""
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(any_engine, options.pop("registry", registry), **options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """An engine with a working runtime."""
    return make_rig()
