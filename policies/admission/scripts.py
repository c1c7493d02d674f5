"""Admission's Lua scripts, each behind the common part, and the names of keys."""

from __future__ import annotations

from importlib.resources import files

from airi.redis_pipeline import Script

EPOCH = "airi:epoch"
VERSIONS = "airi:versions"
LEDGER_STREAM = "airi:ledger"
TENANTS = "airi:tenants"
PROCESSES = "airi:processes"
REBUILD = "airi:rebuild"
CLOCK_LINE = "local function clock() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end"


def load(name: str, *, clock_line: str = CLOCK_LINE) -> Script:
    """Return a script; the simulation gives another source of time by ``clock_line``."""
    folder = files("policies.admission") / "lua"
    common = (folder / "common.lua").read_text(encoding="utf-8")
    assert common.count(CLOCK_LINE) == 1
    return Script(
        name, common.replace(CLOCK_LINE, clock_line) + (folder / f"{name}.lua").read_text(encoding="utf-8")
    )


class Scripts:
    """All scripts, loaded once."""

    def __init__(self, *, clock_line: str = CLOCK_LINE) -> None:
        self.admit = load("admit", clock_line=clock_line)
        self.settle = load("settle", clock_line=clock_line)
        self.restore = load("restore", clock_line=clock_line)
        self.renew = load("renew", clock_line=clock_line)
        self.heartbeat = load("heartbeat", clock_line=clock_line)
        self.reap = load("reap", clock_line=clock_line)
        self.rebuild = load("rebuild", clock_line=clock_line)
        self.snapshot = load("snapshot", clock_line=clock_line)
        self.sweep = load("sweep", clock_line=clock_line)

    def all(self) -> tuple[Script, ...]:
        """Return every script that the data plane runs."""
        return (self.admit, self.settle, self.restore, self.renew, self.heartbeat)


SCRIPTS = Scripts()
