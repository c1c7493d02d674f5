"""Runs the checks of one library and prints what became of each: read by tests/integrations/test_libraries.py.

Belongs to the scripts beside it, which run in environments of their own, without AIRI's packages.
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

BASE_URL = os.environ["AIRI_BASE_URL"] + "/v1"
KEY = os.environ["AIRI_KEY"]
WRONG_KEY = "airi_0000000000000000_wrong"
MODEL = "sim/small"
UNKNOWN_MODEL = "no/such-model"
QUESTION = "What is the weather in Oslo?"
E = TypeVar("E", bound=Exception)
REPORT = "17 degrees and drizzle"


def city_of(argument: str) -> str:
    """Return what the tool says of a city; the model must have taken the city from the question."""
    assert argument == "Oslo", argument
    return REPORT


@contextmanager
def refusal(kind: type[E]) -> Iterator[list[E]]:
    """Catch the error that the block must raise; the list holds it afterwards."""
    caught: list[E] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        raise AssertionError(f"expected {kind.__name__}, and nothing was raised")


def run(checks: dict[str, Callable[[], Awaitable[None]]]) -> None:
    """Run every check in one event loop and print one line of JSON for each; exit with 1 when one failed."""
    sys.exit(asyncio.run(_run(checks)))


async def _run(checks: dict[str, Callable[[], Awaitable[None]]]) -> int:
    failed = 0
    for name, check in checks.items():
        try:
            await check()
        except Exception:  # noqa: BLE001  # each check is told apart, whatever it raises
            failed = 1
            print(json.dumps({"check": name, "error": traceback.format_exc()[-4_000:]}))
        else:
            print(json.dumps({"check": name, "error": None}))
    return failed
