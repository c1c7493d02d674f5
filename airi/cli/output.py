"""Printing results: text for the eye, JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any


def show(arguments: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    """Print ``data`` as JSON when asked for, else what ``text`` makes."""
    if arguments.output == "json":
        line(json.dumps(data, indent=2, ensure_ascii=False, default=str))
    else:
        line(text())


def line(text: str) -> None:
    """Print one text on standard output, at once."""
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "nothing") -> str:
    """Return aligned columns under their names; ``empty`` when there is no row."""
    if not rows:
        return empty
    cells = [[("" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in [list(columns), *cells]) for n in range(len(columns))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [[name.upper() for name in columns], *cells]
    ]
    return "\n".join(lines)


def usd(micros: int | float | None) -> str:
    """Return micro-dollars as dollars: ``$0.0123``."""
    return "" if micros is None else f"${micros / 1_000_000:,.6f}".rstrip("0").rstrip(".")


def moment(ms: int | None) -> str:
    """Return Unix milliseconds as a UTC time, to the second."""
    if ms is None:
        return ""
    return datetime.fromtimestamp(ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(us: int | float | None) -> str:
    """Return microseconds as ms or s."""
    if us is None:
        return ""
    return f"{us / 1_000:.1f} ms" if us < 1_000_000 else f"{us / 1_000_000:.2f} s"
