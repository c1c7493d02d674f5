from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import Live


@pytest.fixture(scope="package")
def live(short_tmp: Path) -> Iterator[Live]:
    with Live(short_tmp / "live") as tree:
        yield tree
