"""Secrets that configuration refers to: found in the environment, in files, or sealed in the vault.

``${env:NAME}`` and ``${file:PATH}`` are resolved where they are used. A value given through the API is sealed by
:func:`seal_values` before anything else sees it: the resource then holds ``${sealed:ID}``, and the vault holds the value
under ``config|Kind|name|field|ID``. Copied to another place, the reference finds nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from airi.config.kinds import AnyResource, Pool, Provider, Tool
from airi.errors import ConfigError
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.vault import Vault

_MAX_FILE_BYTES = 64 * 1024
# AIRI's own secrets must not be sent to an upstream by naming them in a resource.
OWN_VARIABLES = "AIRI_"
_OWN_FILES = {"secret.key", "admin.key", "dev.key"}
_AWS_FIELDS = ("access_key_id", "secret_access_key", "session_token")
_PREFIXES = ("${env:", "${file:", "${sealed:")


class SecretResolver:
    """Turns references into secrets. Blocking (a file or a row); resolve when a snapshot is built, not per call."""

    def __init__(self, engine: Engine, ring: KeyRing, environment: Mapping[str, str] | None = None) -> None:
        self._vault = Vault(engine, ring)
        self._environment = os.environ if environment is None else environment

    def resolve(self, reference: str, where: str) -> Secret:
        """Return the secret; ``where`` is ``Kind|name|field`` (``Provider|openai|api_key``).

        :class:`ConfigError` says which variable, file or sealed value is missing.
        """
        source, _, rest = reference.removeprefix("${").removesuffix("}").partition(":")
        if source == "env":
            return self._variable(rest, where)
        if source == "file":
            return _file(rest, where)
        if source == "sealed":
            value = self._vault.get(_vault_name(where, rest))
            if value is None:
                raise ConfigError([f"{_readable(where)}: the sealed value is not here; set it again"])
            return Secret(value.decode())
        raise ConfigError([f"{_readable(where)}: expected ${{env:NAME}} or ${{file:PATH}}"])

    def _variable(self, name: str, where: str) -> Secret:
        if name.startswith(OWN_VARIABLES):
            raise ConfigError(
                [f"{_readable(where)}: {name} is AIRI's own; it cannot be given to an upstream"]
            )
        value = self._environment.get(name)
        if not value:
            raise ConfigError([f"{_readable(where)}: the environment variable {name} is not set"])
        return Secret(value)


def _file(text: str, where: str) -> Secret:
    path = Path(text).resolve()
    if path.name in _OWN_FILES:
        raise ConfigError(
            [f"{_readable(where)}: {path.name} is AIRI's own; it cannot be given to an upstream"]
        )
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError([f"{_readable(where)}: {path} is too large for a secret"])
        value = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{_readable(where)}: {path} cannot be read ({type(error).__name__})"]) from error
    if not value:
        raise ConfigError([f"{_readable(where)}: {path} is empty"])
    return Secret(value)


def references(resource: AnyResource) -> Iterator[tuple[str, str]]:
    """Yield ``(field, reference)`` of every secret in a resource; fields as ``http.secret_headers.NAME``."""
    if isinstance(resource, Provider | Pool) and resource.api_key is not None:
        yield "api_key", resource.api_key
    if isinstance(resource, Provider):
        for field in _AWS_FIELDS if resource.aws is not None else ():
            held = getattr(resource.aws, field)
            if held is not None:
                yield f"aws.{field}", held
        for header, reference in resource.secret_headers.items():
            yield f"secret_headers.{header}", reference
    if isinstance(resource, Tool) and resource.http is not None:
        for header, reference in resource.http.secret_headers.items():
            yield f"http.secret_headers.{header}", reference


def sealed_name(reference: str, where: str) -> str | None:
    """Return the name in the vault that ``${sealed:ID}`` means at ``where``; ``None`` for other references."""
    prefix = "${sealed:"
    return _vault_name(where, reference[len(prefix) : -1]) if reference.startswith(prefix) else None


def seal_values(data: dict[str, Any], store: Callable[[str, bytes], None]) -> dict[str, Any]:
    """Return a copy of a resource's plain data in which every secret given as a value is a ``${sealed:ID}``.

    ``store(vault name, value)`` keeps the value. Data of the wrong form is left as it is, for the models to refuse.
    """
    kind, metadata = data.get("kind"), data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or kind not in ("Provider", "Pool", "Tool"):
        return data

    def seal(value: Any, field: str) -> Any:
        if not isinstance(value, str) or value.startswith(_PREFIXES):
            return value
        number = secrets.token_hex(8)
        store(_vault_name(f"{kind}|{name}|{field}", number), value.encode())
        return f"${{sealed:{number}}}"

    def seal_headers(holder: dict[str, Any], path: str) -> dict[str, Any]:
        headers = holder.get("secret_headers")
        if not isinstance(headers, dict):
            return holder
        sealed = {header: seal(value, f"{path}secret_headers.{header}") for header, value in headers.items()}
        return {**holder, "secret_headers": sealed}

    if kind == "Tool":
        http = data.get("http")
        return {**data, "http": seal_headers(http, "http.")} if isinstance(http, dict) else data
    if isinstance(data.get("aws"), dict):
        keys = {
            field: seal(data["aws"][field], f"aws.{field}") for field in _AWS_FIELDS if field in data["aws"]
        }
        data = {**data, "aws": {**data["aws"], **keys}}
    if "api_key" in data:
        data = {**data, "api_key": seal(data["api_key"], "api_key")}
    return seal_headers(data, "") if kind == "Provider" else data


def _vault_name(where: str, number: str) -> str:
    return f"config|{where}|{number}"


def _readable(where: str) -> str:
    kind, _, rest = where.partition("|")
    return f"{kind}/{rest.replace('|', ': ')}"
