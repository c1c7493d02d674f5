"""What agents run: tools, and workflows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from airi.config.kinds.base import Resource, SecretReference, Strict
from airi.config.units import Milliseconds


class HttpTool(Strict):
    """A tool behind an HTTP address; ``{name}`` in the URL is filled from the arguments."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "POST"
    url: str
    headers: dict[str, str] = {}
    secret_headers: dict[str, SecretReference] = {}
    timeout: Milliseconds = 30_000
    allow_private: bool = False
    """Private and loopback addresses are refused unless a file (never the API) says otherwise."""


class Tool(Resource):
    """Something an agent or a workflow step can call."""

    kind: Literal["Tool"] = "Tool"
    input_schema: dict[str, Any] = {"type": "object"}
    function: str | None = None
    """``module:function`` of a Python function registered with ``@agents.tools.tool``."""
    http: HttpTool | None = None
    effect: Literal["idempotent", "keyed", "reconcilable", "unsafe"] = "unsafe"
    tenants: list[str] = ["*"]

    @model_validator(mode="after")
    def _one_way(self) -> Tool:
        if (self.function is None) == (self.http is None):
            raise ValueError("give exactly one of 'function' and 'http'")
        return self


class Workflow(Resource):
    """A durable workflow of several models and tools."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)
    kind: Literal["Workflow"] = "Workflow"
