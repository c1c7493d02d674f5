"""Building the parts of a process that runs workflows, from the settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from agents.effects import Effects
from agents.engine import Engine
from agents.model_client import ModelClient
from agents.spans import Spans, SpanSink
from agents.steps.work import Work
from agents.tools.toolbox import SecretsOf, ToolBox
from airi.config.document import ConfigDocument
from airi.config.kinds import HttpTool
from airi.config.secrets import SecretResolver
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.settings import Settings

_FRESH_S = 1.0
_SECRETS_FRESH_S = 30.0


class FreshDocument:
    """The newest configuration, looked up at most once a second; the last known one while the store is away."""

    def __init__(self, current: Callable[[], ConfigDocument]) -> None:
        self._current = current
        self._lock = threading.Lock()
        self._document: ConfigDocument | None = None
        self._until = 0.0

    def __call__(self) -> ConfigDocument:
        """The document."""
        with self._lock:
            if self._document is None or time.monotonic() > self._until:
                self._document = self._current()
                self._until = time.monotonic() + _FRESH_S
            return self._document


def secrets_of(resolver: SecretResolver) -> SecretsOf:
    """Reveals the secret headers of HTTP tools; what was found is kept for half a minute."""
    kept: dict[tuple[str, str], tuple[float, Secret]] = {}

    def reveal(name: str, tool: HttpTool) -> Mapping[str, Secret]:
        found: dict[str, Secret] = {}
        for header, reference in tool.secret_headers.items():
            until, secret = kept.get((name, reference), (0.0, Secret("")))
            if time.monotonic() > until:
                secret = resolver.resolve(reference, f"Tool|{name}|http.secret_headers.{header}")
                kept[name, reference] = (time.monotonic() + _SECRETS_FRESH_S, secret)
            found[header] = secret
        return found

    return reveal


def work_maker(
    engine: Engine, settings: Settings, ring: KeyRing, box: ToolBox, sink: SpanSink | None, process: str
) -> Callable[[Callable[..., Any]], Work]:
    """What :class:`agents.runtime.Runtime` needs to make its :class:`Work`."""
    spans = Spans(sink, process)
    engine.store.on_ended = spans.run

    def make(in_thread: Callable[..., Any]) -> Work:
        return Work(Effects(engine.store, in_thread), ModelClient(settings, ring), box, in_thread, spans)

    return make
