"""The Celery application: the settings that keep messages safe, and two tasks that are only hints."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agents.broker import of_kombu
from agents.caretaker import Hint

if TYPE_CHECKING:
    from celery import Celery

QUEUE = "airi"
EXECUTE = "airi.execute"
ADVANCE = "airi.advance"


def make_app(broker_url: str) -> Celery:
    """An application on ``broker_url``. Tasks are registered by the worker; senders need only their names."""
    from celery import Celery  # the control plane's start does not wait for it: it sends nothing yet

    url, tls = of_kombu(broker_url)
    app = Celery("airi", broker=url, set_as_current=False)
    redis = broker_url.startswith(("redis", "unix", "sentinel", "valkey"))
    app.conf.update(
        broker_use_ssl=tls,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure=True,
        task_acks_on_timeout=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=QUEUE,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=redis,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # threads cannot be, and need no broker to go on
        worker_soft_shutdown_timeout=0.5,
        # The tasks are short (a claim); the steps that they began are drained by the runtime.
        worker_enable_soft_shutdown_on_idle=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # a Redis that refuses (a replica after a failover) takes its turn too
        broker_pool_limit=4,
        event_queue_exclusive=False,
    )
    if redis:
        app.conf.broker_transport_options = {
            "visibility_timeout": 3_600,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "health_check_interval": 5,
            "retry_policy": {"max_retries": 1},
        }
    return app


def ping(broker_url: str, timeout_s: float = 3.0) -> list[str]:
    """Return the names of the workers that answer on the broker within the time; none when it is away."""
    app = make_app(broker_url)
    try:
        answers = app.control.ping(timeout=timeout_s)
    except (OSError, app.connection().transport.connection_errors):
        return []
    return [name for answer in answers for name in answer]


class Sender:
    """Hands hints to the broker on one connection that is kept; ``make`` gives the application once there is a hint."""

    def __init__(self, make: Callable[[], Celery]) -> None:
        self._make = make

    @cached_property
    def _app(self) -> Celery:
        return self._make()

    def __call__(self, hints: list[Hint]) -> None:
        """Send; raises whatever the broker's client raises."""
        with self._app.producer_or_acquire() as producer:
            for hint in hints:
                arguments: list[Any] = [hint.run_id, hint.path, hint.fence] if hint.path else [hint.run_id]
                self._app.send_task(
                    EXECUTE if hint.path else ADVANCE, arguments, producer=producer, retry=False, ignore_result=True,
                    queue=QUEUE, headers={"traceparent": hint.traceparent},
                )  # fmt: skip
