"""Redis for everything off the hot path: bounded pools, short time-outs, bytes in and out.

Admission has a connection of its own (:mod:`airi.redis_pipeline`).
"""

from __future__ import annotations

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

CONNECTIONS = 32
"""The most connections of one pool; a caller beyond it waits :data:`POOL_WAIT_S` and then fails."""
POOL_WAIT_S = 2.0
CONNECT_TIMEOUT_S = 1.0
DEFAULT_TIMEOUT_S = 2.0
_BACKOFF = ExponentialBackoff(cap=0.2, base=0.02)
_RETRIES = 1


def connect(url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> redis.Redis:
    """Return a client for ``redis://``, ``rediss://`` or ``unix://``; it connects on the first command.

    ``timeout_s`` bounds each answer; give more than the longest ``BLOCK`` to a client that blocks.
    """
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=POOL_WAIT_S,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(_BACKOFF, _RETRIES),
    )
    return redis.Redis(connection_pool=pool)


def connect_async(url: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> redis.asyncio.Redis:
    """Return an asyncio client as :func:`connect` does; close it with ``await client.aclose()``."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=POOL_WAIT_S,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=AsyncRetry(_BACKOFF, _RETRIES),
    )
    return redis.asyncio.Redis.from_pool(pool)
