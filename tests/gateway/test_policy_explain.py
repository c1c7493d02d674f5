"""POST /admin/v1/policy/explain over real services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from airi.config.kinds import KINDS
from airi.database import open_engine
from airi.keys.log import NewKey
from airi.settings import Settings
from airi.storage import prepare
from gateway.control import http_errors, policy
from gateway.control.services import Services, build

ADMIN = {"authorization": "Bearer the-admin-key"}
PATH = "/admin/v1/policy/explain"
RESOURCES: list[dict[str, Any]] = [
    {"kind": "Tenant", "metadata": {"name": "acme"}},
    {"kind": "Tenant", "metadata": {"name": "globex"}},
    {
        "kind": "Pool",
        "metadata": {"name": "sim"},
        "region": "us",
        "simulated": True,
        "replicas": [{"name": "a", "url": "http://127.0.0.1:9000"}],
    },
    {
        "kind": "Model",
        "metadata": {"name": "small"},
        "versions": [{"name": "v1", "targets": [{"pool": "sim", "model": "m"}]}],
    },
    {
        "kind": "Policy",
        "metadata": {"name": "no-pii"},
        "when": "size(data.classes) > 0 && model.region == 'us' && model.simulated",
        "detectors": [{"id": "pii"}],
        "effect": "deny",
    },
    {
        "kind": "Policy",
        "metadata": {"name": "globex-only"},
        "scope": {"tenants": ["globex"]},
        "effect": "allow",
    },
]


@pytest.fixture
def services(home: Path, redis_url: str) -> Iterator[Services]:
    environment = {"AIRI_HOME": str(home), "AIRI_ADMIN_KEY": "the-admin-key", "AIRI_REDIS_URL": redis_url}
    settings = Settings.from_environment(environment)
    engine = open_engine(settings.effective_database_url, full_sync=True)
    prepare(engine)
    made = build(settings, engine)
    resources = [KINDS[item["kind"]].model_validate(item) for item in RESOURCES]
    made.config_store.apply(resources, author="test", manager="file", prune=False)
    yield made
    made.redis.close()
    engine.dispose()


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    app = FastAPI()
    http_errors.install(app)
    app.include_router(policy.router(services))
    with TestClient(app, base_url="http://airi.test") as made:
        yield made


def test_explains_with_what_the_configuration_knows_of_the_model(client: TestClient) -> None:
    body = {"model": "small", "messages": [{"role": "user", "content": "mail a@b.io"}]}
    answer = client.post(PATH, json={"tenant": "acme", "body": body}, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    explained = answer.json()
    assert explained["decision"]["effect"] == "deny"
    assert [said["policy"] for said in explained["policies"]] == ["no-pii"]
    assert explained["policies"][0]["values"]["model.region"] == "us"
    assert "a@b.io" not in answer.text


def test_a_key_asks_for_its_own_tenant(client: TestClient, services: Services) -> None:
    _, token = services.key_log.create(NewKey(tenant="globex", role="developer"), actor="test")
    headers = {"authorization": f"Bearer {token.reveal()}"}
    explained = client.post(PATH, json={"text": "hello"}, headers=headers).json()
    assert {said["policy"] for said in explained["policies"]} == {"no-pii", "globex-only"}
    assert client.post(PATH, json={"text": "hello", "tenant": "acme"}, headers=headers).status_code == 403


def test_bad_requests_are_refused(client: TestClient) -> None:
    assert client.post(PATH, json={"text": "hello"}).status_code == 401
    assert client.post(PATH, json={"text": "hello"}, headers=ADMIN).status_code == 400
    assert client.post(PATH, json={"tenant": "acme", "call": {"n": "x"}}, headers=ADMIN).status_code == 400
