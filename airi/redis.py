"""Redis for everything off the hot path: bounded pools, short time-outs, bytes in and out.

Admission has a connection of its own (:mod:`airi.redis_pipeline`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from airi.redis_protocol import Address

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
    address = Address.parse(url)
    where: dict[str, Any] = {"host": address.host, "port": address.port, **address.options}
    kind = redis.SSLConnection if address.tls else redis.Connection
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]  # redis-py's own gap
        connection_class=redis.UnixDomainSocketConnection if address.path else kind,
        **({"path": address.path} if address.path else where),
        db=address.database,
        username=address.username or None,
        password=address.password or None,
        redis_connect_func=partial(_greet, address.password),
        max_connections=CONNECTIONS,
        timeout=POOL_WAIT_S,
        socket_timeout=timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(_BACKOFF, _RETRIES),
    )
    return redis.Redis(connection_pool=pool)


def _greet(password: str, connection: redis.Connection) -> None:
    """Do what a new connection begins with; a server that does not know AUTH repeats what it was sent, AIRI does not."""
    try:
        connection.on_connect()  # type: ignore[no-untyped-call]  # redis-py's own gap
    except redis.RedisError as error:
        if not password or password not in str(error):
            raise
    else:
        return
    raise redis.AuthenticationError("Redis does not know AUTH: it may be no Redis, or the command is renamed")
