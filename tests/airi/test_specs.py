"""Which processes the tree has, for which settings."""

from __future__ import annotations

from pathlib import Path

from airi.settings import Settings
from airi.up.specs import DRAIN_ORDER, tree


def test_one_machine_has_every_part_and_each_has_its_place_at_the_end(home: Path) -> None:
    specs = tree(Settings(home=home), [5001, 5002])
    assert [spec.name for spec in specs] == [
        "redis", "writer", "control", "gateway", "worker", "sim-1", "sim-2",
    ]  # fmt: skip
    assert {spec.role for spec in specs} == set(DRAIN_ORDER)
    assert all(spec.after == ("redis",) for spec in specs if spec.role in ("writer", "control", "gateway"))
    assert [spec.name for spec in specs if not spec.awaited] == ["worker"]
    sims = [spec.command[-4:] for spec in specs if spec.role == "sim"]
    assert sims == [["--port", "5001", "--name", "sim-1"], ["--port", "5002", "--name", "sim-2"]]


def test_a_redis_with_an_address_is_not_started(home: Path) -> None:
    specs = tree(Settings(home=home, redis_url="redis://elsewhere:6379/0"), [])
    assert "redis" not in [spec.name for spec in specs]
    assert all(spec.after == () for spec in specs if spec.awaited)


def test_gateways_are_numbered_and_drain_longest(home: Path) -> None:
    specs = tree(Settings(home=home, workers=3), [])
    gateways = [spec for spec in specs if spec.role == "gateway"]
    assert [spec.name for spec in gateways] == ["gateway-0", "gateway-1", "gateway-2"]
    assert [spec.environment["AIRI_PROCESS_INDEX"] for spec in gateways] == ["0", "1", "2"]
    assert all(spec.drain_s > 30 for spec in specs if spec.role in ("gateway", "worker"))
