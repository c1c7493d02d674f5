"""Fixtures of `make test-engines`: engines that are really vLLM, and AIRI before them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.engines.vllm_engine import Engine, Engines, start_together
from tests.support.live import Live, wait_until

# Collected by scripts/test-engines alone: what they need is 3.5 GB, and `make test` has five minutes.
collect_ignore_glob = [] if os.environ.get("AIRI_ENGINES") else ["test_*.py"]

_CONFIG = """
apiVersion: airi/v1alpha1
kind: Pool
metadata: {{name: both}}
engine: vllm
scrape_interval: 200ms
replicas: [{{name: a, url: "{a}"}}, {{name: b, url: "{b}"}}]
---
apiVersion: airi/v1alpha1
kind: Pool
metadata: {{name: lone}}
engine: vllm
scrape_interval: 200ms
replicas: [{{name: a, url: "{a}"}}]
---
apiVersion: airi/v1alpha1
kind: Pool
metadata: {{name: vectors}}
engine: vllm
scrape_interval: 200ms
replicas: [{{name: c, url: "{c}"}}]
"""
_MODEL = """---
apiVersion: airi/v1alpha1
kind: Model
metadata: {{name: {name}}}
versions: [{{name: v1, targets: [{{pool: {pool}, model: tiny}}]}}]
price: {{input: 1, output: 2}}
contract: {{context_window: 8192, max_output_tokens: 8000, embeddings: {embeddings}}}
"""


@pytest.fixture(scope="session")
def engines(short_tmp: Path) -> Iterator[Engines]:
    """Two equal engines that generate and one that embeds."""
    home = Path(os.environ["AIRI_ENGINES"])
    with start_together(home / "venv", short_tmp) as started:
        yield started


@pytest.fixture(scope="session")
def live(engines: Engines, short_tmp: Path) -> Iterator[Live]:
    """AIRI before the engines: ``vllm/tiny`` on two replicas, ``vllm/lone`` on one of them, ``vllm/embed``."""
    config = _CONFIG.format(a=engines.a.base, b=engines.b.base, c=engines.c.base)
    for name, pool in (("vllm/tiny", "both"), ("vllm/lone", "lone"), ("vllm/embed", "vectors")):
        config += _MODEL.format(name=name, pool=pool, embeddings=str(pool == "vectors").lower())
    with Live(short_tmp / "live", config) as tree:
        yield tree


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(api_key=live.key, base_url=f"{live.base}/v1", max_retries=0) as found:
        yield found


@pytest.fixture
def idle(engines: Engines) -> Engines:
    """The engines, none of which has work left over from a test before."""
    generating: list[Engine] = [engines.a, engines.b]
    wait_until(lambda: all(engine.load().running == 0 for engine in generating), 20)
    return engines
