"""Where calls can go: hosted providers, and pools of engines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from airi.config.kinds.base import Name, Resource, SecretReference, Strict
from airi.config.units import MOST, Milliseconds


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


class AwsAccess(Strict):
    """Keys that requests to Amazon Bedrock are signed with (SigV4)."""

    region: str = Field(pattern=r"^[a-z0-9-]+$")
    """The region of ``base_url``, which the signature names: ``us-east-1``."""
    access_key_id: SecretReference
    secret_access_key: SecretReference
    session_token: SecretReference | None = None
    """For temporary credentials."""


class Provider(Resource):
    """A hosted API."""

    kind: Literal["Provider"] = "Provider"
    dialect: Dialect = "openai"
    """``openai`` is forwarded as bytes; the others are translated."""
    base_url: str
    """Up to and without the route: ``https://api.openai.com/v1``."""
    responses: bool = False
    """Speaks the Responses API too: calls of ``/v1/responses`` are forwarded in that form instead of as chat completions."""
    api_key: SecretReference | None = None
    """Sent as the dialect wants it."""
    aws: AwsAccess | None = None
    """For ``litellm:bedrock``, instead of an ``api_key`` of Bedrock's."""
    headers: dict[str, str] = {}
    secret_headers: dict[str, SecretReference] = {}
    timeouts: Timeouts = Timeouts()
    tls: UpstreamTls = UpstreamTls()
    max_connections: int = Field(512, ge=1, le=10_000)
    """Open connections of one gateway process."""
    max_concurrent: int = Field(1_000, ge=1, le=MOST)
    """Calls under way from one gateway process."""
    region: str = ""
    """Where the data is processed, for policies (``model.region``)."""
    simulated: bool = False
    """Says in every record and answer that no real model answered."""

    @model_validator(mode="after")
    def _one_access(self) -> Provider:
        if self.aws is not None and self.dialect != "litellm:bedrock":
            raise ValueError("'aws' goes with dialect 'litellm:bedrock'")
        if self.aws is not None and self.api_key is not None:
            raise ValueError("give one of 'api_key' and 'aws'")
        return self

    @model_validator(mode="after")
    def _speaks_responses(self) -> Provider:
        if self.responses and self.dialect != "openai":
            raise ValueError("'responses' goes with dialect 'openai'")
        return self


class Replica(Strict):
    """One engine process of a pool. ``url`` has no route: ``http://10.0.0.7:8000``."""

    name: Name
    url: str


class QueueLimits(Strict):
    """The waiting room of a pool: how many calls may wait and how long."""

    max_waiting: int = Field(1_000, ge=0, le=MOST)
    max_wait: Milliseconds = 30_000


class Pool(Resource):
    """Replicas of an engine that serve the same models."""

    kind: Literal["Pool"] = "Pool"
    engine: Literal["vllm", "sim", "openai"] = "vllm"
    """Whose metric names to read; ``openai`` means none."""
    responses: bool = False
    """Speaks the Responses API too: calls of ``/v1/responses`` are forwarded in that form instead of as chat completions."""
    replicas: list[Replica] = Field(min_length=1)
    api_key: SecretReference | None = None
    timeouts: Timeouts = Timeouts()
    tls: UpstreamTls = UpstreamTls()
    scrape_interval: Milliseconds = 500
    """How often health and load are read."""
    tokens_per_replica: int = Field(100_000, ge=1, le=MOST)
    """In-flight tokens (prompt and predicted output) a replica takes before calls wait in the fair queue."""
    concurrency_per_replica: int = Field(256, ge=1, le=MOST)
    """Calls under way that a replica takes at once."""
    max_connections: int = Field(512, ge=1, le=10_000)
    """Open connections of one gateway process to a replica."""
    queue: QueueLimits = QueueLimits()
    region: str = ""
    """Where the data is processed, for policies (``model.region``)."""
    simulated: bool = False
    """Says in every record and answer that no real model answered."""
