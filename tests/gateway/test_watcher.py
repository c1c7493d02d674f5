"""Keys that a gateway does not know yet: found at once, asked for rarely, and never refused because of an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from airi.config.store import ConfigStore
from airi.database import open_engine
from airi.errors import UnavailableError
from airi.keyring import KeyRing
from airi.keys import KeyLog, KeyMap, NewKey
from airi.settings import Settings
from airi.storage import prepare
from gateway import watcher
from gateway.watcher import Watcher


class CountedLog(KeyLog):
    """A key log that counts its readings, and can be away."""

    readings = 0
    away = False

    def packed_after(self, seq: int, limit: int = 0) -> list[tuple[int, str, bytes]]:
        self.readings += 1
        if self.away:
            raise OperationalError("SELECT", {}, Exception("the database is away"))
        return super().packed_after(seq, limit or 1_000)


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    engine = open_engine(f"sqlite:///{home / 'airi.db'}", full_sync=False)
    prepare(engine)
    yield engine
    engine.dispose()


def make(engine: Engine, home: Path) -> tuple[Watcher, CountedLog, KeyMap]:
    log = CountedLog(engine, None, KeyRing.open_for(Settings(home=home)))
    keys = log.new_map()

    async def install(_snapshot: Any) -> None:
        """Nothing is installed here."""

    unused: Any = None
    return Watcher(engine, unused, ConfigStore(engine), log, keys, unused, install), log, keys


async def test_a_key_that_was_just_issued_is_never_refused(engine: Engine, home: Path) -> None:
    watching, log, keys = make(engine, home)
    for _ in range(5):  # each right after a reading for the one before
        _, token = log.create(NewKey(tenant="dev"), actor="test")
        await watching.refresh_keys_for_unknown()
        keys.authenticate(token.reveal())


async def test_many_who_guess_share_few_readings(engine: Engine, home: Path) -> None:
    watching, log, _ = make(engine, home)
    for _ in range(3):
        await asyncio.gather(*(watching.refresh_keys_for_unknown() for _ in range(200)))
    assert log.readings <= 6


async def test_an_outage_is_never_a_wrong_key(
    engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, log, _ = make(engine, home)
    monkeypatch.setattr(watcher, "UNKNOWN_KEY_INTERVAL_S", 0.02)
    log.away = True
    for _ in range(4):  # the second, third and fourth within the interval after a failed reading
        with pytest.raises(UnavailableError):
            await watching.refresh_keys_for_unknown()
    log.away = False
    await watching.refresh_keys_for_unknown()
