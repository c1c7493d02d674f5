"""The kinds of resource a configuration is made of, as pydantic models.

``Workflow`` and the rule part of ``Policy`` are checked in depth by their rooms (``agents/``, ``policies/``),
which import this module, never the other way; see :mod:`airi.config.validation`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from airi.config.units import Milliseconds, UsdMicros

API_VERSION: Final = "airi/v1alpha1"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/:@-]{0,126}[A-Za-z0-9])?$")]
SecretReference = Annotated[
    str, Field(pattern=r"^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^}]+|sealed:[^}]+)\}$")
]
"""``${env:NAME}``, ``${file:PATH}`` or, written by the store itself, ``${sealed:…}``; never a plain secret."""


class Strict(BaseModel):
    """A model that refuses keys it does not know and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Metadata(Strict):
    """Who a resource is. ``name`` is unique within its kind."""

    name: Name
    labels: dict[str, str] = {}
    description: str = ""


class Resource(Strict):
    """What all kinds share."""

    api_version: Literal["airi/v1alpha1"] = Field(API_VERSION, alias="apiVersion")
    kind: str
    metadata: Metadata


class Timeouts(Strict):
    """How long an upstream may take, each phase on its own; ``total`` bounds the whole call."""

    connect: Milliseconds = 5_000
    first_byte: Milliseconds = 120_000
    idle: Milliseconds = 60_000
    total: Milliseconds = 900_000


class UpstreamTls(Strict):
    """TLS towards an upstream. Verification cannot be switched off; give the private authority instead."""

    ca_file: str | None = None
    """PEM file of the authority that signed the upstream's certificate."""
    client_certificate: str | None = None
    """PEM file; shown to upstreams that ask for one, with ``client_key``."""
    client_key: str | None = None
    server_name: str | None = None
    """Name that the certificate must carry, when it is not the address's."""


Dialect = Annotated[str, Field(pattern=r"^(openai|anthropic|litellm:[a-z0-9_]+)$")]
"""``openai`` is forwarded as bytes; ``anthropic`` and ``litellm:PROVIDER`` are translated by the litellm SDK."""


class Provider(Resource):
    """A hosted API."""

    kind: Literal["Provider"] = "Provider"
    dialect: Dialect = "openai"
    """``openai`` is forwarded as bytes; the others are translated."""
    base_url: str
    """Up to and without the route: ``https://api.openai.com/v1``."""
    api_key: SecretReference | None = None
    """Sent as the dialect wants it."""
    headers: dict[str, str] = {}
    secret_headers: dict[str, SecretReference] = {}
    timeouts: Timeouts = Timeouts()
    tls: UpstreamTls = UpstreamTls()
    max_connections: int = Field(512, ge=1, le=10_000)
    """Open connections of one gateway process."""
    max_concurrent: int = Field(1_000, ge=1)
    """Calls under way from one gateway process."""
    region: str = ""
    """Where the data is processed, for policies (``model.region``)."""
    simulated: bool = False
    """Says in every record and answer that no real model answered."""


class Replica(Strict):
    """One engine process of a pool. ``url`` has no route: ``http://10.0.0.7:8000``."""

    name: Name
    url: str


class QueueLimits(Strict):
    """The waiting room of a pool: how many calls may wait and how long."""

    max_waiting: int = Field(1_000, ge=0)
    max_wait: Milliseconds = 30_000


class Pool(Resource):
    """Replicas of an engine that serve the same models."""

    kind: Literal["Pool"] = "Pool"
    engine: Literal["vllm", "sim", "openai"] = "vllm"
    """Whose metric names to read; ``openai`` means none."""
    replicas: list[Replica] = Field(min_length=1)
    api_key: SecretReference | None = None
    timeouts: Timeouts = Timeouts()
    tls: UpstreamTls = UpstreamTls()
    scrape_interval: Milliseconds = 500
    """How often health and load are read."""
    tokens_per_replica: int = Field(100_000, ge=1)
    """In-flight tokens (prompt and predicted output) a replica takes before calls wait in the fair queue."""
    concurrency_per_replica: int = Field(256, ge=1)
    """Calls under way that a replica takes at once."""
    max_connections: int = Field(512, ge=1, le=10_000)
    """Open connections of one gateway process to a replica."""
    queue: QueueLimits = QueueLimits()
    region: str = ""
    """Where the data is processed, for policies (``model.region``)."""
    simulated: bool = False
    """Says in every record and answer that no real model answered."""


class Price(Strict):
    """Dollars per million tokens."""

    input: UsdMicros
    output: UsdMicros
    cached_input: UsdMicros | None = None


class Target(Strict):
    """One place that can serve a version: a pool or a provider, and the model's name there."""

    pool: Name | None = None
    provider: Name | None = None
    model: str
    weight: int = Field(100, ge=0)
    """Share of calls relative to the version's other targets; 0 takes none."""
    price: Price | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Target:
        if (self.pool is None) == (self.provider is None):
            raise ValueError("give exactly one of 'pool' and 'provider'")
        return self


class ModelContract(Strict):
    """What callers may rely on; a fallback is taken only within it. ``None``: not known, not refused."""

    context_window: int | None = Field(None, ge=1)
    """Tokens of prompt and answer together."""
    max_output_tokens: int = Field(4_096, ge=1)
    """The most that one answer may have."""
    tools: bool = True
    json_schema: bool = True
    vision: bool = False
    embeddings: bool = False


class ModelVersion(Strict):
    """A version: targets that give equal answers."""

    name: Name
    targets: list[Target] = Field(min_length=1)


class Retries(Strict):
    """Attempts before the first byte, over all targets; back-off with full jitter."""

    max_attempts: int = Field(3, ge=1, le=10)
    initial: Milliseconds = 100
    factor: float = Field(2.0, ge=1)
    max: Milliseconds = 5_000


class Model(Resource):
    """An alias that callers name, its versions and where each is served."""

    kind: Literal["Model"] = "Model"
    versions: list[ModelVersion] = Field(min_length=1)
    active: Name | None = None
    """The version that serves; the last one when not given."""
    fallbacks: list[Name] = []
    """Other aliases, tried in order when every target of this one fails before the first byte."""
    price: Price | None = None
    """For targets without their own; unpriced targets are looked up in the price map by model name."""
    contract: ModelContract = ModelContract()
    retries: Retries = Retries()
    drop_params: bool = False
    """Drop fields that the target cannot take instead of refusing the call."""

    @model_validator(mode="after")
    def _active_exists(self) -> Model:
        names = [version.name for version in self.versions]
        if len(set(names)) != len(names):
            raise ValueError("two versions have the same name")
        if self.active is not None and self.active not in names:
            raise ValueError(f"active version {self.active!r} is not among {names}")
        return self

    @property
    def active_version(self) -> ModelVersion:
        """The version new calls are served by."""
        wanted = self.active or self.versions[-1].name
        return next(version for version in self.versions if version.name == wanted)


class Limits(Strict):
    """Rates and concurrency of one scope; ``None`` is no limit."""

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    concurrent_calls: int | None = Field(None, ge=1)


class Budget(Strict):
    """Money of one scope in a calendar window (UTC). ``hard`` cannot be overspent; ``soft`` states its bound."""

    name: Name
    usd: UsdMicros
    window: Literal["minute", "hour", "day", "week", "month", "total"] = "month"
    mode: Literal["hard", "soft"] = "hard"


class ModelLimits(Limits):
    """Limits of one model within its tenant."""

    budgets: list[Budget] = []


class Team(Strict):
    """A team within an organisation."""

    name: Name
    limits: Limits = Limits()
    budgets: list[Budget] = []
    models: list[str] = ["*"]


class RecordOptions(Strict):
    """What of a call's content is kept. ``masked``: after the detectors have masked it."""

    content: Literal["off", "masked"] = "off"


IdentityAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""Asymmetric ones alone: with a shared secret, whoever checks tokens could make them."""
MappedRole = Literal["org_admin", "policy_author", "policy_approver", "auditor", "developer", "service"]
"""Roles within a tenant; ``platform_admin`` reaches beyond one and is never given by a token."""


class Identity(Strict):
    """Bearer tokens (JWT) of an OpenID Connect issuer that are taken beside API keys."""

    issuer: str
    """The token's ``iss``, to the letter."""
    audience: list[str] = Field(min_length=1)
    """One of these must be in the token's ``aud``."""
    algorithms: list[IdentityAlgorithm] = Field(["RS256"], min_length=1)
    """Signatures that are taken; the token has no say in it."""
    jwks_url: str | None = None
    """Where the issuer's keys are; without it the issuer's ``/.well-known/openid-configuration`` says so."""
    jwks_file: str | None = None
    """A file with the issuer's keys, instead of an address."""
    tls: UpstreamTls = UpstreamTls()
    require: dict[str, str] = {}
    """Claims that must hold (or list) a value: what tells tenants of one issuer apart. ``a.b`` names a claim within one."""
    user_claim: str = "sub"
    """The claim that names the end user."""
    team_claim: str | None = None
    """The claim that names the team; a token whose value is no team of the tenant is refused."""
    teams: dict[str, str] = {}
    """The claim's values to names of teams, where they differ."""
    role_claim: str | None = None
    """The claim (a text or a list) that ``roles`` looks at."""
    roles: dict[str, MappedRole] = {}
    """The claim's values to roles; the first of these that a token has counts."""
    default_role: Literal["developer", "service", "none"] = "developer"
    """The role of a token that has none of ``roles``; ``none`` refuses it."""
    models: list[str] = ["*"]
    """Aliases (with ``*``) that these tokens may call."""
    leeway: Milliseconds = Field(30_000, le=300_000)
    """How far the issuer's clock may be off."""

    @model_validator(mode="after")
    def _consistent(self) -> Identity:
        if self.jwks_url is not None and self.jwks_file is not None:
            raise ValueError("give one of 'jwks_url' and 'jwks_file'")
        if (self.roles or self.default_role == "none") and self.role_claim is None:
            raise ValueError("'roles' and 'default_role: none' need a 'role_claim'")
        if self.teams and self.team_claim is None:
            raise ValueError("'teams' needs a 'team_claim'")
        return self


class Tenant(Resource):
    """An organisation: its teams, its limits, its share of full pools."""

    kind: Literal["Tenant"] = "Tenant"
    teams: list[Team] = []
    limits: Limits = Limits()
    budgets: list[Budget] = []
    user_limits: Limits = Limits()
    """For each end user (the request's ``user`` field) on its own."""
    model_limits: dict[str, ModelLimits] = {}
    models: list[str] = ["*"]
    """Aliases (with ``*``) that the tenant may call."""
    weight: float = Field(1.0, gt=0)
    """Share of a full pool relative to other tenants."""
    record: RecordOptions = RecordOptions()
    identity: Identity | None = None
    """Tokens of the tenant's own sign-in that are taken like keys."""


class PolicyScope(Strict):
    """Whom a policy applies to; an empty list means all. ``*`` matches any run of characters."""

    tenants: list[str] = []
    teams: list[str] = []
    keys: list[str] = []
    models: list[str] = []


class DetectorUse(Strict):
    """A detector that the policy's condition needs, and what happens when it cannot answer."""

    id: Literal["pii", "email", "card", "iban", "phone", "secrets", "words"]
    min_score: float = Field(0.5, ge=0, le=1)
    on_error: Literal["deny", "allow"] = "deny"
    words: list[str] = []
    """For ``words``: the words, matched without regard to case at word borders."""


class PolicyTest(Strict):
    """A case that travels with its policy; ``airi policy test`` runs it."""

    name: str
    input: dict[str, Any]
    expect: dict[str, Any]


class Policy(Resource):
    """A rule: where it applies, when, and with what effect."""

    kind: Literal["Policy"] = "Policy"
    tier: Literal["platform", "org", "team", "key"] = "platform"
    mode: Literal["enforce", "shadow", "off"] = "enforce"
    scope: PolicyScope = PolicyScope()
    stages: list[Literal["prompt", "response"]] = Field(["prompt"], min_length=1)
    when: str = "true"
    """A CEL condition; see docs/policies.md for the variables."""
    detectors: list[DetectorUse] = []
    effect: Literal["allow", "deny", "redact", "route"]
    route_to: Name | None = None
    reason: str = Field("POLICY", pattern=r"^[A-Z][A-Z0-9_]*$")
    message: str = ""
    """What a denied caller is told."""
    tests: list[PolicyTest] = []

    @model_validator(mode="after")
    def _route_has_target(self) -> Policy:
        if (self.effect == "route") != (self.route_to is not None):
            raise ValueError("'route_to' goes with effect 'route', and effect 'route' needs it")
        return self


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


AnyResource = Provider | Pool | Model | Tenant | Policy | Tool | Workflow
KINDS: dict[str, type[AnyResource]] = {
    "Provider": Provider,
    "Pool": Pool,
    "Model": Model,
    "Tenant": Tenant,
    "Policy": Policy,
    "Tool": Tool,
    "Workflow": Workflow,
}
