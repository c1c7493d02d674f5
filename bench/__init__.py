"""Performance figures: self-contained, on loopback, with their method; see docs/performance.md."""

from __future__ import annotations

import os

FOLDER = os.environ.get("AIRI_BENCH_FOLDER", "/tmp")
"""Where the trees that are measured live; its path must be short, for unix sockets are made in it."""
