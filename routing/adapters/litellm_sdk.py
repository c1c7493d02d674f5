"""The litellm SDK, imported when it is first needed and tied down: no network, no callbacks, no clients of its own."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from typing import Any

from routing.errors import KnownBadVersionError

KNOWN_BAD_VERSIONS = {
    "1.82.7": "carried a credential stealer (24 March 2026)",
    "1.82.8": "carried a credential stealer that ran at every start of Python (24 March 2026)",
}
"""Releases that must never be installed or imported, and why. A test holds the pin in requirements/ against it."""
_ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",
    "DISABLE_AIOHTTP_TRANSPORT": "True",
}
"""No network and no ``.env`` file at import."""


def check_version(version: str) -> None:
    """Raise :class:`KnownBadVersionError` for a release that must not run."""
    reason = KNOWN_BAD_VERSIONS.get(version)
    if reason is not None:
        raise KnownBadVersionError(f"litellm {version} {reason}; install the pinned one.", status=503)


@functools.cache
def load() -> Any:
    """Import litellm, quiet and without network, and return it. Takes seconds: call it in a thread."""
    check_version(importlib.metadata.version("litellm"))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Its types make pydantic warn on standard error; nobody here can act on that.
    warnings.filterwarnings("ignore", message=".*ReadOnly. qualifier")
    litellm: Any = importlib.import_module("litellm")
    litellm.suppress_debug_info = True
    litellm.drop_params = False
    litellm.modify_params = False
    litellm.num_retries = 0
    litellm.cache = None
    for hooks in ("callbacks", "input_callback", "success_callback", "failure_callback", "service_callback"):
        setattr(litellm, hooks, [])
    # Equal chunks in a row are ordinary text here, not a fault that ends a stream.
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its logs may hold prompts; what went wrong reaches our record through the attempt.
        logging.getLogger(name).disabled = True
    _tie_clients(litellm)
    return litellm


def _tie_clients(litellm: Any) -> None:
    """Let every HTTP client that litellm makes for itself send through the call's own transport, or not at all.

    Some of its ways (embeddings of Gemini's, for one) ignore the client that they are given.
    """
    # Here, not above: httpx is of no use to a gateway that translates nothing.
    from routing.adapters.transport import CurrentTransport, client_through, refusing_client

    handlers = importlib.import_module("litellm.llms.custom_httpx.http_handler")
    handlers.AsyncHTTPHandler.create_client = lambda self, *_, **__: client_through(
        self.transport or CurrentTransport()
    )
    for name in ("create_async_transport", "_create_async_transport"):  # for clients of OpenAI's SDK
        setattr(handlers.AsyncHTTPHandler, name, staticmethod(lambda *_, **__: CurrentTransport()))
    handlers.HTTPHandler.create_client = lambda *_, **__: refusing_client()
    litellm.module_level_aclient.client = client_through(CurrentTransport())
    litellm.module_level_client.client = refusing_client()
