"""Building the parts of a process that runs workflows, from the settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from agents.effects import Effects
from agents.engine import Engine
from agents.model_client import ModelClient
from agents.spans import Spans, SpanSink
from agents.steps.work import Work
from agents.tools.toolbox import SecretsOf, ToolBox
from airi.config.kinds import HttpTool
from airi.config.secrets import SecretResolver
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.settings import Settings

_SECRETS_FRESH_S = 30.0


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
