"""A workflow as people write it: the models of its YAML, and the immutable definition that runs are pinned to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, model_validator

from agents.errors import RETRYABLE, ErrorClass
from airi.config.kinds import Strict
from airi.config.units import Milliseconds, UsdMicros
from airi.keys.record import Role

Identifier = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$")]
EffectClass = Literal["idempotent", "keyed", "reconcilable", "unsafe"]
MAX_STEPS = 200
MAX_ITEMS = 10_000


class Backoff(Strict):
    """How long to wait before the next attempt: ``initial × factor^n``, at most ``max``, jittered."""

    initial: Milliseconds = 1_000
    factor: float = Field(2.0, ge=1, le=10)
    max: Milliseconds = 60_000
    jitter: Literal["full", "none"] = "full"


class Retry(Strict):
    """Attempts of a step. A lost worker is not the step's fault and has a limit of its own, ``max_crashes``."""

    max_attempts: int = Field(3, ge=1, le=100)
    backoff: Backoff = Backoff()
    on: tuple[ErrorClass, ...] = RETRYABLE
    max_crashes: int = Field(8, ge=1, le=1_000)


class RunBudget(Strict):
    """What a whole run may use; it fails when more is needed."""

    cost_usd: UsdMicros | None = None
    tokens: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    wall: Milliseconds | None = None
    on_exceed: Literal["fail"] = "fail"


class StepBudget(Strict):
    """What one agent step (or one item of a fan-out) may use."""

    cost_usd: UsdMicros | None = None
    tokens: int | None = Field(None, ge=1)


class Concurrency(Strict):
    """At most ``max`` runs of the same ``group`` (an expression) at a time; the others queue in order."""

    group: str = "${{ workflow.name }}"
    max: int = Field(1, ge=1)


class Defaults(Strict):
    """What steps take when they do not say otherwise."""

    retry: Retry = Retry()
    timeout: Milliseconds = 600_000


class ModelOptions(Strict):
    """What ``llm`` and ``agent`` share. ``model`` is an alias, or an expression that gives one."""

    model: str
    system: str = ""
    """A Jinja2 template, like ``prompt``."""
    output_schema: dict[str, Any] | None = None
    """JSON Schema of the answer; the output is then the parsed value instead of a text."""
    repairs: int = Field(2, ge=0, le=5)
    """How often the model is shown its invalid answer and asked again."""
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int = Field(1_024, ge=1)


class LlmOptions(ModelOptions):
    """One question to a model."""

    prompt: str | None = None
    messages: str | None = None
    """An expression that gives a list of chat messages, instead of ``prompt``."""

    @model_validator(mode="after")
    def _one_source(self) -> LlmOptions:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of 'prompt' and 'messages'")
        return self


class AgentOptions(ModelOptions):
    """A model that calls tools until it has an answer."""

    input: str
    """A Jinja2 template or a ``${{ }}`` expression."""
    tools: tuple[str, ...] = ()
    max_turns: int = Field(8, ge=1, le=100)
    budget: StepBudget = StepBudget()


class ToolOptions(Strict):
    """One call of a tool; values of ``args`` may hold ``${{ }}`` expressions."""

    tool: str
    args: dict[str, Any] = Field(default_factory=dict)


class FanOut(Strict):
    """The step once for each item of a list, ``max_parallel`` at a time; its output is the list of outputs."""

    each: Identifier
    items: str | list[Any] = Field(alias="in")
    max_parallel: int = Field(4, ge=1, le=1_000)
    on_error: Literal["fail", "collect"] = "fail"
    """``collect``: a failed item gives ``null`` in ``outputs`` and an entry in ``errors``."""


class Approval(Strict):
    """A person decides. ``role`` is the role that a key needs to do so (``org_admin`` always may)."""

    role: Role = "org_admin"
    message: str = ""
    """A Jinja2 template: what the person is asked."""
    timeout: Milliseconds | None = None
    on_timeout: Literal["reject", "approve"] = "reject"
    on_reject: Literal["fail", "continue"] = "fail"
    """``continue``: later steps look at ``output.approved``."""


class Wait(Strict):
    """A row in a table until a person decides or time has passed; no process waits."""

    approval: Approval | None = None
    duration: Milliseconds | None = None

    @model_validator(mode="after")
    def _one_wait(self) -> Wait:
        if (self.approval is None) == (self.duration is None):
            raise ValueError("give exactly one of 'approval' and 'duration'")
        return self


class EffectOverride(Strict):
    """The class of effect of this one call, when it is known to be another than the tool's."""

    class_: EffectClass = Field(alias="class")


class Step(Strict):
    """A node of the workflow: a ``call`` or a ``wait``."""

    id: Identifier
    name: str = ""
    needs: tuple[str, ...] = ()
    if_: str | None = Field(None, alias="if")
    for_: FanOut | None = Field(None, alias="for")
    call: Literal["llm", "agent", "tool"] | None = None
    with_: dict[str, Any] = Field({}, alias="with")
    wait: Wait | None = None
    retry: Retry | None = None
    timeout: Milliseconds | None = None
    effect: EffectOverride | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        if (self.call is None) == (self.wait is None):
            raise ValueError("give exactly one of 'call' and 'wait'")
        if self.wait is not None and self.for_ is not None:
            raise ValueError("'for' goes with 'call', not with 'wait'")
        if self.effect is not None and self.call != "tool":
            raise ValueError("'effect' goes with 'call: tool'")
        return self

    @property
    def kind(self) -> str:
        """``llm``, ``agent``, ``tool``, ``approval`` or ``duration``."""
        if self.wait is not None:
            return "approval" if self.wait.approval is not None else "duration"
        assert self.call is not None
        return self.call

    @cached_property
    def llm(self) -> LlmOptions:
        """The options of a step that calls a model."""
        return LlmOptions.model_validate(self.with_)

    @cached_property
    def agent(self) -> AgentOptions:
        """The options of an agent step."""
        return AgentOptions.model_validate(self.with_)

    @cached_property
    def tool(self) -> ToolOptions:
        """The options of a step that calls a tool."""
        return ToolOptions.model_validate(self.with_)


OPTIONS: Mapping[str, type[Strict]] = {"llm": LlmOptions, "agent": AgentOptions, "tool": ToolOptions}
"""What ``with`` may hold, by ``call``."""


class WorkflowBody(Strict):
    """Everything of a workflow's document except ``apiVersion``, ``kind`` and ``metadata``."""

    inputs: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    """JSON Schema of the inputs; ``default`` of a property fills in what is not given."""
    budget: RunBudget = RunBudget()
    concurrency: Concurrency | None = None
    defaults: Defaults = Defaults()
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    outputs: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A checked workflow. ``id`` is the SHA-256 of the canonical JSON of its document; a run is pinned to it."""

    name: str
    document: dict[str, Any]
    body: WorkflowBody
    order: tuple[str, ...]
    """Step ids, each after those that it needs."""
    description: str = ""
    steps: dict[str, Step] = field(default_factory=dict)
    references: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict, repr=False, compare=False)
    """Which steps the expressions of a step look at, as found out once by :mod:`agents.context`."""

    @cached_property
    def id(self) -> str:
        """The definition's name by content."""
        return hashlib.sha256(self.canonical).hexdigest()

    @cached_property
    def canonical(self) -> bytes:
        """The document as canonical JSON."""
        return msgspec.json.encode(self.document, order="sorted")

    def retry(self, step: Step) -> Retry:
        """The step's retry rule."""
        return step.retry or self.body.defaults.retry

    def timeout_ms(self, step: Step) -> int:
        """How long one attempt of the step may take."""
        return step.timeout or self.body.defaults.timeout
