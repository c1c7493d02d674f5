from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.door_world import Door, door_on
from tests.support.live import Live


@pytest.fixture(scope="package")
def live(short_tmp: Path) -> Iterator[Live]:
    with Live(short_tmp / "live") as tree:
        yield tree


@pytest.fixture(scope="package")
def door(live: Live) -> Iterator[Door]:
    with door_on(live) as found:
        yield found
