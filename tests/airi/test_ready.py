"""Saying that one is ready."""

from __future__ import annotations

import gc
import os

import pytest

from airi.up.ready import READY_FD, notify_ready


def test_ready_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv(READY_FD, str(writing))
    notify_ready()
    notify_ready()
    assert os.read(reading, 100) == b"READY\n"
    assert os.read(reading, 100) == b""  # closed
    os.close(reading)
    assert READY_FD not in os.environ


def test_a_supervisor_that_is_gone_is_no_reason_to_die(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setenv(READY_FD, str(writing))
    notify_ready()


def test_without_a_supervisor_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READY_FD, raising=False)
    notify_ready()


def test_the_collector_that_rested_during_the_start_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READY_FD, raising=False)
    gc.disable()
    try:
        notify_ready()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()
