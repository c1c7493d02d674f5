"""The fault matrix, short: ``make chaos`` plays all of it."""

from __future__ import annotations

import pytest

from bench.chaos.__main__ import problems, run
from bench.chaos.scenarios import matrix, quick

pytestmark = pytest.mark.integration


def test_nothing_is_lost_and_nothing_happens_twice() -> None:
    result = run(quick())
    assert problems(result) == [], result
    assert result["keyed_effects"] > 0
    assert result["unsafe_effects"] > 0


def test_the_matrix_names_every_point_and_every_role() -> None:
    names = " ".join(matrix())
    for word in (
        "claim",
        "intent",
        "call",
        "response",
        "commit",
        "publish",
        "ack",
        "worker",
        "gateway",
        "control",
        "redis",
        "writer",
    ):
        assert word in names
