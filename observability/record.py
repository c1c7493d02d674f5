"""What AIRI writes down: one record a call, one a step of a run, one line for a call that is still running.

The structs are encoded as arrays, so their field order *is* the wire and the disk format: a field is only ever
appended, with a default, and never moved, renamed in meaning or removed. A reader of an older record then sees the
default; a reader that is older than the record ignores what it does not know.

Times: ``*_unix_ns`` are wall clock nanoseconds since 1970 UTC; ``*_us`` are microseconds, as offsets from the
record's start where the name says ``at``. Money is in micro-dollars. No field may hold a caller's text, a key or an
upstream's secret; content goes beside the record as :class:`CallContent`, already masked.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Count = Annotated[int, msgspec.Meta(ge=-(1 << 48), le=1 << 48)]
"""A number that a day's sum of cannot leave SQLite's 64 bits; the writer refuses a record beyond it."""
UnixNs = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Decision(msgspec.Struct, array_like=True, gc=False):
    """One stage's decision and its reasons.

    ``stage`` is one of ``auth``, ``limits``, ``policy``, ``route``, ``response_policy``, ``price``, in the order in which they were taken; ``outcome`` is a word such as ``allowed``, ``denied``, ``redacted``,
    ``routed``, ``chosen``, ``shadowed``, ``computed``; ``reason`` is a sentence for people or a policy's reason code.

    ``details`` holds plain data. The dashboard puts these keys into words and shows any other as it is:

    - auth: ``role``, ``key``, ``team``;
    - limits: ``scopes``, ``hold_usd_micros``, ``granted_output_tokens``, ``requested_output_tokens``, ``requests`` and
      ``tokens`` (``{limit, remaining}``); of a refusal ``scope``, ``kind``, ``limit``;
    - policy, response_policy: ``policy``, ``effect``, ``message``, ``route_to``, ``shadows`` (list of ``{policy, effect,
      reason}``), ``detections`` (class → count);
    - route: what :meth:`routing.answer.Answer.explanation` returns: ``target``, ``version``, ``reason``, ``candidates``,
      ``rejected``, ``passed_over``;
    - price: ``input_tokens``, ``cached_tokens``, ``output_tokens``, ``input_usd_micros_per_million`` (``cached_input_…``,
      ``output_…``), ``usage_source``, ``source``, ``cost_usd_micros``.
    """

    stage: str
    at_us: int = 0
    took_us: int = 0
    outcome: str = ""
    reason: str = ""
    details: dict[str, Any] = {}


class Attempt(msgspec.Struct, array_like=True, gc=False):
    """One try at one target. ``at_us`` counts from the call's start, the others from the attempt's."""

    target: str
    """``pool/replica`` or a provider's name."""
    at_us: int
    outcome: str = "ok"
    """``ok``, ``status`` (the upstream refused), ``cancelled``, or an error's code."""
    status: int = 0
    """HTTP status of the upstream, 0 when none arrived."""
    duration_us: int = 0
    first_byte_us: int = 0
    """0 when no byte arrived."""
    error: str = ""
    reason: str = ""
    """Why this attempt was made or given up, in words."""
    model: str = ""
    """Alias of the fallback that this attempt belongs to; empty for the alias that was asked."""
    provider_model: str = ""
    server_address: str = ""
    """Host behind the target, without credentials."""
    server_port: int = 0
    wait_us: int = 0
    """Time in the pool's fair queue before the attempt started."""
    simulated: bool = False
    span_id: str = ""


class CallRecord(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One finished call, whole. Everything but the first group has a default, so that an early end still records."""

    trace_id: str
    span_id: str
    tenant: str
    started_unix_ns: UnixNs
    duration_us: Count
    status: Count
    """HTTP status the caller got; 499 when the caller left first."""
    parent_span_id: str = ""
    request_id: str = ""
    process: str = ""
    team: str = ""
    key_id: str = ""
    user: str = ""
    session: str = ""
    tags: list[str] = []
    route: str = ""
    """``/v1/chat/completions``."""
    operation: str = "chat"
    """OpenTelemetry's word: ``chat``, ``text_completion``, ``embeddings``."""
    model: str = ""
    """The model as the caller asked for it."""
    alias: str = ""
    version: str = ""
    """The version that served, alone or as ``alias@version`` where a fallback of another alias did."""
    target: str = ""
    provider: str = ""
    """OpenTelemetry's ``gen_ai.provider.name``: ``openai``, ``anthropic``, ``vllm``, ``sim``."""
    provider_model: str = ""
    response_id: str = ""
    stream: bool = False
    error_type: str = ""
    error_code: str = ""
    error_message: str = ""
    """AIRI's own words about the failure; never an upstream's body."""
    marks: dict[str, int] = {}
    """Stage → µs after the start at which it *ended*: auth, admit, policy, route, first_byte, last_byte, end."""
    ttft_us: Count = 0
    """Time to the first visible byte, 0 when there was none."""
    input_tokens: Count = 0
    output_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: int = 0
    usage_source: str = "none"
    """``upstream``, ``estimated`` or ``none``."""
    max_tokens: int = 0
    """As sent upstream; 0 when not sent."""
    temperature: float | None = None
    cost_usd_micros: Count = 0
    price_source: str = ""
    reservation_id: str = ""
    finish_reasons: list[str] = []
    decisions: list[Decision] = []
    attempts: list[Attempt] = []
    """In the order in which they were made; the last one answered, or was the last that failed."""
    run_id: str = ""
    step: str = ""
    snapshot: str = ""
    """Digest of the configuration snapshot that served the call."""
    simulated: bool = False
    detections: dict[str, int] = {}
    """Detector class → how many were found. Never the text."""
    policy_hit: str = ""
    """Name of the policy that denied, redacted or rerouted the call; empty when none did."""
    replayed: bool = False
    """The answer came from the idempotency store; nothing was sent upstream."""
    chunks: int = 0
    """Events of the stream as sent to the caller."""

    @property
    def served_as(self) -> str:
        """``alias@version`` of what served; empty when nothing did."""
        return self.version if not self.version or "@" in self.version else f"{self.alias}@{self.version}"


class CallContent(msgspec.Struct, array_like=True, gc=False):
    """A call's content, masked before it left the gateway: JSON bodies, or ``b""`` for what there was not."""

    request: bytes
    response: bytes = b""


class SpanLink(msgspec.Struct, array_like=True, gc=False):
    """Another span that caused this one without being its parent."""

    trace_id: str
    span_id: str


class SpanRecord(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One finished piece of a run: the workflow's own advance, a step attempt, an agent turn or a tool call.

    A run that lives for days is not one span: each attempt is a root of its own, linked to the one before and
    stitched by ``run_id``.
    """

    trace_id: str
    span_id: str
    tenant: str
    kind: str
    """``workflow``, ``step``, ``agent`` or ``tool``."""
    name: str
    """Name of the workflow, step, agent or tool; exporters put the operation before it."""
    started_unix_ns: UnixNs
    duration_us: Count
    parent_span_id: str = ""
    links: list[SpanLink] = []
    process: str = ""
    run_id: str = ""
    workflow: str = ""
    step: str = ""
    attempt: int = 1
    state: str = ""
    """State that the piece ended in: ``succeeded``, ``failed``, ``cancelled``, ``needs_review``, ``waiting``."""
    error: str = ""
    """Error class or AIRI's own sentence; never a tool's output."""
    tool_effect: str = ""
    """For tools: the effect class that was applied."""
    details: dict[str, Any] = {}


class LiveCall(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """A call that is running now."""

    trace_id: str
    tenant: str
    started_unix_ns: UnixNs
    stage: str = ""
    """The stage it is in: ``auth``, ``admit``, ``policy``, ``queue``, ``forward``, ``stream``."""
    request_id: str = ""
    team: str = ""
    key_id: str = ""
    model: str = ""
    target: str = ""
    stream: bool = False
    output_tokens: Count = 0
    run_id: str = ""
    session: str = ""
    simulated: bool = False
