"""Celery's consumer, patient with its broker: a message is only a hint, so a worker can wait for it as long as it takes."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

logger = logging.getLogger(__name__)
_PAUSE_S = 1
"""Between two attempts; Celery's own pauses grow to half a minute, for which runs would wait after the broker is back."""
_AT_ONCE_S = 0.25
"""Before the first attempt: of more than five in a second, Celery makes an alarm."""
_QUIET_S = 10.0


class PatientConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Looks for a lost broker every second and says so in one line, once in a while."""

    _told = float("-inf")

    def ensure_connected(self, connection: Any) -> Any:
        """Connect, however often it takes; SIGTERM ends it."""
        found = connection.ensure_connection(
            lambda error, _pause: self._tell(error), None, _PAUSE_S, 1, _PAUSE_S, maybe_shutdown
        )
        self.first_connection_attempt = False
        return found

    def on_connection_error_before_connected(self, error: Exception) -> None:
        """It takes connections and refuses to serve: a replica after a failover, a full or a loading one."""
        self._tell(error)
        time.sleep(_PAUSE_S)

    def on_connection_error_after_connected(self, error: Exception) -> None:
        """It broke off in the middle of work."""
        for channel in tuple(getattr(self.connection.transport, "channels", ())):  # AMQP's has none
            _forget(channel)
        super().on_connection_error_after_connected(error)
        time.sleep(_AT_ONCE_S)

    def _tell(self, error: Exception) -> None:
        if time.monotonic() - self._told > _QUIET_S:
            self._told = time.monotonic()
            logger.warning("the broker does not serve (%s); it is tried every second", error)


def _forget(channel: Any) -> None:
    """Make a lost channel's messages nobody's: kombu falls over giving back or acknowledging what came over it.

    Nothing is lost by that: the outbox tells again what no worker has claimed.
    """
    channel.do_restore = False
    channel.basic_ack = channel.basic_reject = lambda *_tag, **_options: None
