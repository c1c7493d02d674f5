"""Telling every process that the configuration or the keys changed.

A committed write sets ``airi:versions`` in Redis (fields ``snapshot`` and ``keys``) and publishes on ``airi:notify``.
Redis being away never fails a write: the control plane's :class:`Notifier` compares the hash with SQL each second
and repeats what was lost. Admission returns the hash's fields with every call, so a lost message is noticed too.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Engine, text

if TYPE_CHECKING:  # it takes as long to import as everything else here, and readers do not need it
    import redis

CHANNEL = "airi:notify"
VERSIONS = "airi:versions"
INTERVAL_S = 1.0
_READ = text("SELECT (SELECT version FROM config_head), (SELECT seq FROM key_head)")
_log = logging.getLogger(__name__)

# Raises the fields, never lowers them: a slow writer must not undo a later one's notice.
_RAISE = """
for i = 1, #ARGV, 2 do
  local known = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '-1')
  if tonumber(ARGV[i + 1]) > known then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
"""
# Sets the fields to SQL's truth (which a restore may have lowered) unless somebody changed them meanwhile.
_CORRECT = """
local seen = redis.call('HMGET', KEYS[1], 'snapshot', 'keys')
if (seen[1] or '') ~= ARGV[1] or (seen[2] or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'snapshot', ARGV[3], 'keys', ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class Versions:
    """The configuration's version and the key log's sequence number."""

    snapshot: int
    keys: int


def read_versions(engine: Engine) -> Versions:
    """Return SQL's truth, in one statement."""
    with engine.connect() as connection:
        snapshot, keys = connection.execute(_READ).one()
    return Versions(snapshot, keys)


def announce(client: redis.Redis | None, **fields: int) -> bool:
    """Raise ``snapshot`` or ``keys`` in Redis and publish; return whether Redis took it. Never raises."""
    if client is None:
        return False
    from redis import RedisError

    arguments = [str(part) for item in fields.items() for part in item]
    try:
        client.eval(_RAISE, 1, VERSIONS, *arguments)
        client.publish(CHANNEL, json.dumps(fields))
    except (RedisError, OSError) as error:
        _log.warning(
            "Redis did not take a notice; the control plane repeats it", extra={"error": repr(error)}
        )
        return False
    return True


class Notifier:
    """Keeps Redis's versions equal to SQL's; runs in the control plane."""

    def __init__(self, engine: Engine, client: redis.Redis) -> None:
        self._engine = engine
        self._client = client

    def run_once(self) -> bool:
        """Correct and publish when the versions differ; return whether they did. Raises what Redis raises."""
        seen = self._client.hmget(VERSIONS, ["snapshot", "keys"])
        texts = [b"" if value is None else value for value in seen]
        truth = read_versions(self._engine)
        if texts == [str(truth.snapshot).encode(), str(truth.keys).encode()]:
            return False
        done = self._client.eval(_CORRECT, 1, VERSIONS, *texts, truth.snapshot, truth.keys)
        if done:
            self._client.publish(CHANNEL, json.dumps({"snapshot": truth.snapshot, "keys": truth.keys}))
        return bool(done)

    def run(self, stop: threading.Event) -> None:
        """Call :meth:`run_once` each second until ``stop`` is set; blocking, for a thread of its own."""
        away = False
        while not stop.is_set():
            try:
                self.run_once()
                away = False
            # Whatever fails here (Redis, the database) must not end the loop: it is what repairs lost notices.
            except Exception as error:  # noqa: BLE001
                if not away:
                    _log.warning("notices cannot be sent; trying each second", extra={"error": repr(error)})
                away = True
            stop.wait(INTERVAL_S)
