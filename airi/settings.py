"""Settings from the environment. The names are public (docs/configuration.md) and fixed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airi.errors import ConfigError
from airi.redis_protocol import Address, is_address
from airi.secrets import Secret

# A unix socket's path is limited to 107 bytes on Linux and 103 on macOS.
_SOCKET_PATH_LIMIT = 100
MIN_SECRET_CHARACTERS = 32
_PORTS = (1, 65_535)
_DATABASES = ("sqlite", "postgresql", "postgres")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says. Paths are absolute; ``None`` means "use the embedded part"."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 4000
    config: Path | None = None
    workers: int = 1
    # These three may hold a password.
    database_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    broker_url: str | None = field(default=None, repr=False)
    admin_key: Secret | None = None
    admin_port: int | None = None
    gateway_url: str | None = None
    secret_key: Secret | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    sim_replicas: int = 2
    record_days: int = 14
    """Days of call records that are kept, today among them."""
    max_calls: int = 4_000
    """Calls under way in one gateway process; one more is refused at once."""

    @property
    def sockets(self) -> Path:
        """Folder of the unix sockets: inside ``home``, or a private short path when that is too long."""
        inside = self.home / "run"
        if len(str(inside / "control.sock").encode()) <= _SOCKET_PATH_LIMIT:
            return inside
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"airi-{os.getuid()}-{digest}"

    @property
    def control_socket(self) -> Path:
        """Where the control plane listens (HTTP)."""
        return self.sockets / "control.sock"

    @property
    def writer_socket(self) -> Path:
        """Where the record writer takes frames from gateways and workers."""
        return self.sockets / "writer.sock"

    @property
    def redis_socket(self) -> Path:
        """Where the embedded Redis listens."""
        return self.sockets / "redis.sock"

    @property
    def effective_redis_url(self) -> str:
        """The Redis that counters, locks and notices use, as a redis-py URL."""
        return self.redis_url or f"unix://{self.redis_socket}?db=0"

    @property
    def effective_broker_url(self) -> str:
        """Celery's broker, as a kombu URL. The embedded broker is database 1 of the embedded Redis."""
        if self.broker_url:
            return self.broker_url
        return self.redis_url or f"redis+socket://{self.redis_socket}?virtual_host=1"

    @property
    def effective_database_url(self) -> str:
        """Configuration, keys, audit, ledger and content, as a SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.home / 'airi.db'}"

    @property
    def effective_runs_url(self) -> str:
        """The durable engine's own database, as a SQLAlchemy URL (the same PostgreSQL when one is given)."""
        return self.database_url or f"sqlite:///{self.home / 'runs.db'}"

    @property
    def records(self) -> Path:
        """Folder of the record store: one SQLite file a day."""
        return self.home / "records"

    @property
    def effective_gateway_url(self) -> str:
        """The address under which workers reach the gateway's door."""
        scheme = "https" if self.tls_certificate else "http"
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104  # compared, not bound
        return self.gateway_url or f"{scheme}://{host}:{self.port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read ``AIRI_*``; raise :class:`ConfigError` naming the variable that cannot be understood."""
        env = os.environ if environment is None else environment
        problems: list[str] = []

        def integer(name: str, low: int = 1, high: int = 1_000_000) -> int | None:
            text = env.get(name, "")
            if not text:
                return None
            if not text.isdecimal():
                problems.append(f"{name}: expected a whole number, got {text!r}")
            elif len(text) > len(str(high)) or not low <= int(text) <= high:
                problems.append(f"{name}: expected a number between {low} and {high}, got {text[:20]}")
            else:
                return int(text)
            return None

        def path(name: str) -> Path | None:
            return Path(env[name]).absolute() if env.get(name) else None

        default_config = Path("airi.yaml").absolute()
        settings = cls(
            home=(path("AIRI_HOME") or Path(".airi").absolute()),
            host=env.get("AIRI_HOST") or "127.0.0.1",
            port=integer("AIRI_PORT", *_PORTS) or 4000,
            config=path("AIRI_CONFIG") or (default_config if default_config.exists() else None),
            workers=integer("AIRI_WORKERS") or 1,
            database_url=env.get("AIRI_DATABASE_URL") or None,
            redis_url=env.get("AIRI_REDIS_URL") or None,
            broker_url=env.get("AIRI_BROKER_URL") or None,
            admin_key=Secret(env["AIRI_ADMIN_KEY"]) if env.get("AIRI_ADMIN_KEY") else None,
            admin_port=integer("AIRI_ADMIN_PORT", *_PORTS),
            gateway_url=env.get("AIRI_GATEWAY_URL") or None,
            secret_key=Secret(env["AIRI_SECRET_KEY"]) if env.get("AIRI_SECRET_KEY") else None,
            tls_certificate=path("AIRI_TLS_CERTIFICATE"),
            tls_key=path("AIRI_TLS_KEY"),
            sim_replicas=integer("AIRI_SIM_REPLICAS") or 2,
            record_days=integer("AIRI_RECORD_DAYS") or 14,
            max_calls=integer("AIRI_MAX_CALLS") or 4_000,
        )
        if settings.config is not None and not settings.config.exists():
            problems.append(f"AIRI_CONFIG: {settings.config} does not exist")
        if (settings.tls_certificate is None) != (settings.tls_key is None):
            problems.append("AIRI_TLS_CERTIFICATE and AIRI_TLS_KEY must be set together")
        problems += settings._wrong_addresses() + settings._wrong_secret()
        if problems:
            raise ConfigError(problems)
        return settings

    def _wrong_addresses(self) -> list[str]:
        problems: list[str] = []
        broker = self.broker_url if is_address(self.broker_url or "") else None  # others are kombu's alone
        for name, url in (("AIRI_REDIS_URL", self.redis_url), ("AIRI_BROKER_URL", broker)):
            try:
                files = Address.parse(url or "redis://").options
            except ConfigError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
            else:
                missing = [option for option, file in files.items() if not Path(file).is_file()]
                problems += [f"{name}: the file of {option} does not exist" for option in missing]
        kind = (self.database_url or "sqlite:").partition(":")[0].partition("+")[0]
        if kind not in _DATABASES:
            problems.append(
                f"AIRI_DATABASE_URL: {kind[:20]!r} is not supported; use postgresql://… or sqlite:///…"
            )
        return problems

    def _wrong_secret(self) -> list[str]:
        parts = [part.strip() for part in self.secret_key.reveal().split(",")] if self.secret_key else []
        if all(len(part) >= MIN_SECRET_CHARACTERS for part in parts if part):
            return []
        return [
            f"AIRI_SECRET_KEY: each key needs at least {MIN_SECRET_CHARACTERS} random characters; make one with "
            "`openssl rand -base64 32`"
        ]
