"""Secrets that configuration refers to, and where values given through the API go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from airi.config.edits import SealedValue
from airi.config.kinds import Provider
from airi.config.loader import load_data
from airi.config.secrets import SecretResolver, references, seal_values
from airi.config.store import ConfigStore
from airi.errors import ConfigError, UnavailableError
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.storage import prepare
from airi.vault import Vault

RING = KeyRing([Secret("s" * 40)])
PROVIDER = {
    "apiVersion": "airi/v1alpha1",
    "kind": "Provider",
    "metadata": {"name": "openai"},
    "base_url": "https://api.example.com/v1",
}


@pytest.fixture
def resolver(any_engine: Engine) -> SecretResolver:
    prepare(any_engine)
    return SecretResolver(
        any_engine, RING, {"OPENAI_API_KEY": "sk-env", "EMPTY": "", "AIRI_SECRET_KEY": "own"}
    )


def sealed_provider(**body: Any) -> tuple[dict[str, Any], list[SealedValue]]:
    values: list[SealedValue] = []
    data = seal_values({**PROVIDER, **body}, lambda name, value: values.append((name, value)))
    return data, values


def test_environment_and_files(resolver: SecretResolver, tmp_path: Path) -> None:
    assert resolver.resolve("${env:OPENAI_API_KEY}", "Provider|openai|api_key").reveal() == "sk-env"
    (tmp_path / "key").write_text("sk-file\n")
    assert resolver.resolve(f"${{file:{tmp_path}/key}}", "Provider|openai|api_key").reveal() == "sk-file"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${env:NOPE}", "Provider/openai: api_key: the environment variable NOPE is not set"),
        ("${env:EMPTY}", "the environment variable EMPTY is not set"),
        ("${env:AIRI_SECRET_KEY}", "AIRI_SECRET_KEY is AIRI's own"),
        ("${file:/nonexistent/x}", "cannot be read"),
        ("${file:HOME/secret.key}", "secret.key is AIRI's own"),
        ("${file:HOME/link}", "admin.key is AIRI's own"),
        ("${file:HOME/empty}", "is empty"),
        ("${file:HOME/large}", "too large"),
        ("${sealed:0000}", "the sealed value is not here"),
        ("${what:x}", "expected"),
    ],
)
def test_what_cannot_be_resolved_says_why(
    resolver: SecretResolver, tmp_path: Path, reference: str, message: str
) -> None:
    (tmp_path / "secret.key").write_text("x")
    (tmp_path / "admin.key").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "admin.key")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "large").write_text("x" * 70_000)
    with pytest.raises(ConfigError, match=message):
        resolver.resolve(reference.replace("HOME", str(tmp_path)), "Provider|openai|api_key")


def test_values_are_sealed_and_only_their_place_opens_them(
    resolver: SecretResolver, any_engine: Engine
) -> None:
    store = ConfigStore(any_engine, sealing=Vault(any_engine, RING))
    data, values = sealed_provider(
        api_key="sk-api", secret_headers={"x-org": "secret-org", "x-env": "${env:OPENAI_API_KEY}"}
    )
    resource = load_data([data])[0].resource
    store.put(resource, author="a", secrets=values)
    found = dict(references(store.get("Provider", "openai").resource))
    assert found["api_key"].startswith("${sealed:")
    assert found["secret_headers.x-env"] == "${env:OPENAI_API_KEY}"
    assert resolver.resolve(found["api_key"], "Provider|openai|api_key").reveal() == "sk-api"
    assert (
        resolver.resolve(found["secret_headers.x-org"], "Provider|openai|secret_headers.x-org").reveal()
        == "secret-org"
    )
    with pytest.raises(ConfigError, match="not here"):
        resolver.resolve(found["api_key"], "Provider|evil|api_key")
    copied = load_data([{**PROVIDER, "metadata": {"name": "evil"}, "api_key": found["api_key"]}])[0].resource
    with pytest.raises(
        ConfigError, match="Provider/evil: api_key: this sealed value belongs to another place"
    ):
        store.put(copied, author="a")
    assert isinstance(resource, Provider)
    store.put(resource.model_copy(update={"region": "eu"}), author="a")  # written back as it was read
    with any_engine.connect() as connection:
        for table in ("config_resources", "config_changes", "vault", "audit", "config_versions"):
            rows = repr(connection.execute(text(f"SELECT * FROM {table}")).all())
            assert "sk-api" not in rows
            assert "secret-org" not in rows


def test_keys_of_aws_are_secrets(resolver: SecretResolver, any_engine: Engine) -> None:
    store = ConfigStore(any_engine, sealing=Vault(any_engine, RING))
    keys = {"access_key_id": "AKIDCANARY", "secret_access_key": "secret-canary", "session_token": "${env:T}"}
    data, values = sealed_provider(dialect="litellm:bedrock", aws={"region": "eu-west-1", **keys})
    store.put(load_data([data])[0].resource, author="a", secrets=values)
    found = dict(references(store.get("Provider", "openai").resource))
    assert set(found) == {"aws.access_key_id", "aws.secret_access_key", "aws.session_token"}
    assert found["aws.session_token"] == "${env:T}"
    where = "Provider|openai|aws."
    assert resolver.resolve(found["aws.access_key_id"], where + "access_key_id").reveal() == "AKIDCANARY"
    assert resolver.resolve(found["aws.secret_access_key"], where + "secret_access_key").reveal() == (
        "secret-canary"
    )
    with any_engine.connect() as connection:
        for table in ("config_resources", "config_changes", "vault", "audit", "config_versions"):
            assert "canary" not in repr(connection.execute(text(f"SELECT * FROM {table}")).all()).lower()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dialect": "openai"}, "goes with dialect"),
        ({"dialect": "litellm:bedrock", "api_key": "${env:K}"}, "one of 'api_key' and 'aws'"),
    ],
)
def test_keys_of_aws_are_for_bedrock_alone(body: dict[str, Any], message: str) -> None:
    aws = {"region": "us-east-1", "access_key_id": "${env:A}", "secret_access_key": "${env:S}"}
    with pytest.raises(ConfigError, match=message):
        load_data([{**PROVIDER, "aws": aws, **body}])


def test_a_store_without_a_vault_takes_no_values(any_engine: Engine) -> None:
    prepare(any_engine)
    data, values = sealed_provider(api_key="sk-api")
    with pytest.raises(UnavailableError, match="cannot seal"):
        ConfigStore(any_engine).put(load_data([data])[0].resource, author="a", secrets=values)


def test_tools_and_odd_data() -> None:
    values: list[SealedValue] = []
    tool = {
        "kind": "Tool", "metadata": {"name": "t"},
        "http": {"url": "https://x.example", "secret_headers": {"authorization": "Bearer s"}},
    }  # fmt: skip
    sealed = seal_values(tool, lambda name, value: values.append((name, value)))
    assert values[0][0].startswith("config|Tool|t|http.secret_headers.authorization|")
    assert values[0][1] == b"Bearer s"
    assert sealed["http"]["secret_headers"]["authorization"].startswith("${sealed:")
    assert tool["http"]["secret_headers"]["authorization"] == "Bearer s"  # type: ignore[index]
    for odd in (
        {},
        {"kind": "Provider"},
        {"kind": "Provider", "metadata": 3},
        {**PROVIDER, "secret_headers": 3},
    ):
        assert seal_values(odd, lambda *_: None) == odd
    for odd in ({**tool, "http": 3}, {**PROVIDER, "api_key": {"value": "x"}}):
        assert seal_values(odd, lambda *_: None) == odd
