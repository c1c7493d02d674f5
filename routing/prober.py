"""Asking replicas how they are: health and load, each replica on its own connection and rhythm."""

from __future__ import annotations

import asyncio
import random

from airi.errors import AiriError
from airi.http.client import HttpPool
from routing.adapters.openai import client_options, header_block
from routing.engine_metrics import EngineLoad, parse_vllm
from routing.pool import Place
from routing.prefix import BLOCK_TOKENS, MAX_BLOCKS_PER_REPLICA
from routing.replica import Replica

_PROBE_MS = 2_000
_BODY_LIMIT = 4 << 20
_JITTER = 0.2


class Prober:
    """Watches one replica until stopped. Scrapes correct what this process knows; they never lead."""

    def __init__(self, place: Place, replica: Replica) -> None:
        self._place = place
        self._replica = replica
        spec = place.spec
        self._pool = HttpPool(replica.endpoint.origin, options=client_options(spec, max_connections=1))
        self._headers = header_block(((b"accept", b"*/*"), (b"user-agent", b"airi"), *spec.headers))
        self._last: EngineLoad | None = None
        self._task = asyncio.create_task(self._watch(), name=f"probe {replica.name}")

    def stop(self) -> None:
        """End the watching and its connection."""
        self._task.cancel()
        self._pool.abort()

    async def _watch(self) -> None:
        while True:
            interval = self._place.spec.scrape_ms / 1_000
            await self._check(interval)
            await asyncio.sleep(interval * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311  # not a secret

    async def _check(self, interval_s: float) -> None:
        replica = self._replica
        well = await self._healthy()
        if replica.checked(well):
            if replica.health == "up":
                self._place.recovered(replica)
            else:
                self._last = None
                self._place.index.purge(replica.bit)
        if well and self._place.spec.engine in ("vllm", "sim"):
            text = await self._get(f"{replica.endpoint.root}/metrics")
            load = parse_vllm(text) if text is not None else None
            if load is not None:
                self._take_in(load, interval_s)

    async def _healthy(self) -> bool:
        """Engines answer ``/health``; of others only the list of models is certain."""
        endpoint = self._replica.endpoint
        path = (
            f"{endpoint.prefix}/models" if self._place.spec.engine == "openai" else f"{endpoint.root}/health"
        )
        return await self._get(path) is not None

    def _take_in(self, load: EngineLoad, interval_s: float) -> None:
        """Correct the replica's load; a restart shows as another start time or a counter that fell."""
        replica, last = self._replica, self._last
        self._last = load
        if last is not None and (load.started != last.started or load.queries < last.queries):
            self._place.index.purge(replica.bit)
        if load.kv_tokens:
            replica.token_capacity = min(self._place.spec.tokens_per_replica, load.kv_tokens)
            self._place.index.set_limit(
                replica.bit, min(load.kv_tokens // BLOCK_TOKENS, MAX_BLOCKS_PER_REPLICA)
            )
        replica.scraped(self._place.now(), load.running, load.waiting, load.kv_usage, interval_s)

    async def _get(self, path: str) -> bytes | None:
        """Return the body of a 200, else ``None``."""
        try:
            response = await self._pool.send(
                b"GET",
                path.encode("ascii"),
                self._headers,
                first_byte_ms=_PROBE_MS,
                idle_ms=_PROBE_MS,
                total_ms=_PROBE_MS,
            )
            try:
                body = await response.read(_BODY_LIMIT)
            finally:
                response.close()
        except AiriError:
            return None
        return body if response.status == 200 else None
