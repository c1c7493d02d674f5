"""Where calls can be sent, as plain immutable data made of Pool and Provider resources.

Two specifications that are equal describe the same place: the router keeps its connections and counters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from airi.config.kinds import Pool, Provider, Timeouts, UpstreamTls
from airi.http.origin import parse_origin, proxy_for
from airi.http.tls import TlsOptions, client_context
from airi.secrets import Secret

SecretResolver = Callable[[str, str], Secret]
"""From a reference and where it stands (``Kind|name|field``) to the secret; as :mod:`airi.config.secrets` has it."""
Header = tuple[bytes, bytes]
_REFERENCE = re.compile(r"^\$\{(env|file):(.+)\}$")
_HEADER_NAME = re.compile(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
UNLIMITED_TOKENS = 1 << 62
_PROVIDER_MAX_WAITING = 1_000
_PROVIDER_MAX_WAIT_MS = 30_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address. ``origin`` is an :class:`~airi.http.client.HttpPool` origin; ``prefix`` precedes the route."""

    name: str
    origin: str
    prefix: str
    query: str = ""

    @property
    def root(self) -> str:
        """The prefix of the engine's own routes (``/health``, ``/metrics``): ``prefix`` without ``/v1``."""
        return self.prefix.removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """What requests to Bedrock are signed with."""

    region: str
    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret | None


@dataclass(frozen=True, slots=True)
class PlaceSpec:
    """A pool or a provider. A provider is a place with one endpoint, no health checks and no token capacity."""

    name: str
    kind: Literal["pool", "provider"]
    engine: Literal["vllm", "sim", "openai"]
    dialect: str
    endpoints: tuple[Endpoint, ...]
    base_url: str
    headers: tuple[Header, ...] = field(repr=False)
    api_key: Secret | None = field(repr=False)
    timeouts: Timeouts
    tls: UpstreamTls
    max_connections: int
    tokens_per_replica: int
    concurrency_per_replica: int
    max_waiting: int
    max_wait_ms: int
    scrape_ms: int
    region: str
    simulated: bool
    responses: bool = False
    """Whether it speaks the Responses API beside chat completions."""
    aws: AwsKeys | None = field(default=None, repr=False)
    fault: str = ""
    """Why nothing can be sent there from this machine (a secret or a TLS file is missing); empty when something can."""


def resolve_plain_reference(reference: str, where: str = "") -> Secret:
    """Resolve ``${env:NAME}`` and ``${file:PATH}``; raise :class:`ValueError` saying what is missing.

    ``${sealed:…}`` needs the key ring: the gateway hands in a resolver that has it.
    """
    match = _REFERENCE.match(reference)
    if match is None:
        raise ValueError(f"{where}: only ${{env:NAME}} and ${{file:PATH}} can be resolved here")
    if match[1] == "env":
        value = os.environ.get(match[2])
        if not value:
            raise ValueError(f"the environment variable {match[2]} is not set")
        return Secret(value)
    try:
        return Secret(Path(match[2]).read_text().strip())
    except OSError as error:
        raise ValueError(f"cannot read {match[2]}: {error.strerror}") from None


def parse_base_url(url: str) -> tuple[str, str, str]:
    """Split a base address into (origin, path prefix, query).

    ``https://host:port/v1?api-version=1`` and ``unix:/run/airi/control.sock:/v1`` (socket path, colon, prefix)
    are the two forms. Raises :class:`ValueError`.
    """
    if url.startswith("unix:"):
        path, colon, prefix = url[5:].rpartition(":")
        socket_path, prefix = (path, prefix) if colon else (prefix, "")
        if not socket_path.startswith("/") or (prefix and not prefix.startswith("/")):
            raise ValueError(f"expected unix:/path/to.sock or unix:/path/to.sock:/prefix, got {url!r}")
        return f"unix:{socket_path}", prefix.rstrip("/"), ""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            f"expected http(s)://host[:port][/prefix] or unix:/path/to.sock:/prefix, got {url!r}"
        )
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/"), parts.query


def check_reachable(spec: PlaceSpec) -> None:
    """Raise :class:`~airi.errors.ConfigError` for what would fail at the first connection: TLS files, a proxy's address."""
    tls = tls_options(spec.tls)
    for endpoint in spec.endpoints:
        origin = parse_origin(endpoint.origin)
        proxy_for(origin)
        if origin.scheme == "https":
            client_context(tls)


def tls_options(tls: UpstreamTls) -> TlsOptions:
    """Return the client's form of a resource's TLS options."""
    return TlsOptions(
        ca_file=tls.ca_file,
        certificate_file=tls.client_certificate,
        key_file=tls.client_key,
        server_name=tls.server_name,
    )


def pool_spec(pool: Pool, resolve: SecretResolver) -> PlaceSpec:
    """Describe a pool; raise :class:`ValueError` for an address or a secret that cannot be used."""
    endpoints = []
    for replica in pool.replicas:
        origin, prefix, query = parse_base_url(replica.url)
        prefix = prefix if prefix.endswith("/v1") else prefix + "/v1"
        endpoints.append(Endpoint(f"{pool.metadata.name}/{replica.name}", origin, prefix, query))
    names = [endpoint.name for endpoint in endpoints]
    if len(set(names)) != len(names):
        raise ValueError("two replicas have the same name")
    key = resolve(pool.api_key, f"Pool|{pool.metadata.name}|api_key") if pool.api_key else None
    return PlaceSpec(
        name=pool.metadata.name,
        kind="pool",
        engine=pool.engine,
        dialect="openai",
        endpoints=tuple(endpoints),
        base_url="",
        headers=_bearer(key),
        api_key=key,
        timeouts=pool.timeouts,
        tls=pool.tls,
        max_connections=pool.max_connections,
        tokens_per_replica=pool.tokens_per_replica,
        concurrency_per_replica=pool.concurrency_per_replica,
        max_waiting=pool.queue.max_waiting,
        max_wait_ms=pool.queue.max_wait,
        scrape_ms=pool.scrape_interval,
        region=pool.region,
        simulated=pool.simulated or pool.engine == "sim",
        responses=pool.responses,
    )


def provider_spec(provider: Provider, resolve: SecretResolver) -> PlaceSpec:
    """Describe a provider; raise :class:`ValueError` for an address or a secret that cannot be used."""
    origin, prefix, query = parse_base_url(provider.base_url)
    if provider.dialect != "openai" and origin.startswith("unix:"):
        raise ValueError("only the openai dialect is spoken over a unix socket")
    where = f"Provider|{provider.metadata.name}"
    key = resolve(provider.api_key, f"{where}|api_key") if provider.api_key else None
    extra = dict(provider.headers)
    for name, reference in provider.secret_headers.items():
        extra[name] = resolve(reference, f"{where}|secret_headers.{name}").reveal()
    headers = dict(_header(name, value) for name, value in extra.items())
    own = provider.dialect != "openai" or b"authorization" in headers or b"api-key" in headers
    bearer = () if own else _bearer(key)
    return PlaceSpec(
        name=provider.metadata.name,
        kind="provider",
        engine="openai",
        dialect="litellm:anthropic" if provider.dialect == "anthropic" else provider.dialect,
        endpoints=(Endpoint(provider.metadata.name, origin, prefix, query),),
        base_url=provider.base_url,
        headers=(*bearer, *headers.items()),
        api_key=key,
        timeouts=provider.timeouts,
        tls=provider.tls,
        max_connections=provider.max_connections,
        tokens_per_replica=UNLIMITED_TOKENS,
        concurrency_per_replica=provider.max_concurrent,
        max_waiting=_PROVIDER_MAX_WAITING,
        max_wait_ms=_PROVIDER_MAX_WAIT_MS,
        scrape_ms=0,
        region=provider.region,
        simulated=provider.simulated,
        responses=provider.responses,
        aws=_aws_keys(provider, resolve),
    )


def _aws_keys(provider: Provider, resolve: SecretResolver) -> AwsKeys | None:
    access = provider.aws
    if access is None:
        return None
    where = f"Provider|{provider.metadata.name}|aws."
    token = access.session_token
    return AwsKeys(
        region=access.region,
        access_key_id=resolve(access.access_key_id, where + "access_key_id"),
        secret_access_key=resolve(access.secret_access_key, where + "secret_access_key"),
        session_token=resolve(token, where + "session_token") if token else None,
    )


def _header(name: str, value: str) -> Header:
    """Return a header as bytes; raise :class:`ValueError` for one that would break out of its line."""
    if not _HEADER_NAME.match(name) or "\r" in value or "\n" in value:
        raise ValueError(f"header {name!r} cannot be sent")
    return name.lower().encode("ascii"), value.encode("latin-1")


def _bearer(key: Secret | None) -> tuple[Header, ...]:
    return ((b"authorization", b"Bearer " + key.reveal().encode("latin-1")),) if key else ()
