"""The admin API: who may do what, in which form it answers, and what it never tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, Response
from fastapi.testclient import TestClient

from airi import audit
from airi.clock import unix_ms
from airi.database import open_engine
from airi.keys import KeyLog, NewKey
from airi.keys.record import Role
from airi.settings import Settings
from airi.storage import prepare
from airi.tokens import RunClaims, mint
from gateway.control import admin, http_errors
from gateway.control.auth import Principal, csrf_token, require, set_session, sign_in
from gateway.control.services import Services, build

ADMIN = {"authorization": "Bearer the-admin-key"}
POOL = {"metadata": {"name": "sim"}, "replicas": [{"name": "a", "url": "http://127.0.0.1:9000"}]}
MODEL = {
    "metadata": {"name": "sim/small"},
    "versions": [{"name": "v1", "targets": [{"pool": "sim", "model": "m"}]}],
}


@pytest.fixture
def services(home: Path, redis_url: str) -> Iterator[Services]:
    settings = Settings.from_environment(
        {"AIRI_HOME": str(home), "AIRI_ADMIN_KEY": "the-admin-key", "AIRI_REDIS_URL": redis_url}
    )
    engine = open_engine(settings.effective_database_url, full_sync=True)
    prepare(engine)
    made = build(settings, engine)
    yield made
    made.redis.close()
    engine.dispose()


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    app = FastAPI()
    http_errors.install(app)
    app.include_router(admin.router(services))

    @app.post("/sign-in")
    async def enter(request: Request, response: Response, key: str) -> dict[str, str]:
        who, cookie = await sign_in(services, key)
        set_session(services, request, response, cookie)
        return {"name": who.name}

    @app.get("/token")
    async def token(request: Request) -> str:
        return csrf_token(services, request)

    anybody = Depends(require(services, run_tokens=True))

    @app.get("/me")
    async def me(who: Principal = anybody) -> dict[str, Any]:
        return {"actor": who.actor, "tenant": who.tenant, "run": who.run.run_id if who.run else None}

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("sk-secret in a traceback")

    with TestClient(app, base_url="http://airi.test", raise_server_exceptions=False) as made:
        yield made


@pytest.fixture
def seeded(client: TestClient) -> TestClient:
    for path, body in (
        ("pools", POOL),
        ("models", MODEL),
        ("tenants", {"metadata": {"name": "acme"}, "teams": [{"name": "core"}], "models": ["sim/*"]}),
        ("tenants", {"metadata": {"name": "globex"}}),
    ):
        answer = client.post(f"/admin/v1/{path}", json=body, headers=ADMIN)
        assert answer.status_code == 201, answer.text
    return client


def key(services: Services, role: Role, tenant: str = "acme", **more: Any) -> dict[str, str]:
    log: KeyLog = services.key_log
    _, token = log.create(NewKey(tenant=tenant, role=role, **more), actor="test")
    return {"authorization": f"Bearer {token.reveal()}"}


def error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    found: dict[str, Any] = body["error"]
    return found


def test_without_a_key_there_is_nothing(client: TestClient) -> None:
    paths = [
        "tenants",
        "keys",
        "models",
        "pools",
        "policies",
        "limits",
        "budgets",
        "tools",
        "workflows",
        "snapshots",
        "audit",
    ]
    for path in paths:
        answer = client.get(f"/admin/v1/{path}")
        assert error(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for header in ("Bearer nope", "Bearer airi_x_y", "Basic dGhl", "Bearer", "the-admin-key"):
        error(client.get("/admin/v1/tenants", headers={"authorization": header}), 401)
    error(client.post("/admin/v1/apply", json={"resources": []}), 401)


def test_errors_have_openais_form_on_every_path(seeded: TestClient) -> None:
    assert error(seeded.get("/nowhere"), 404)["code"] == "unknown_url"
    assert error(seeded.put("/me"), 405)["code"] == "method_not_allowed"
    strange = seeded.get("/v1/messages/nowhere")
    assert (strange.status_code, strange.json()["error"]["type"]) == (
        404,
        "not_found_error",
    )  # Anthropic's form
    found = error(seeded.get("/boom"), 500)
    assert "sk-secret" not in found["message"]
    assert error(seeded.get("/admin/v1/tenants?limit=0", headers=ADMIN), 400)["param"] == "limit"
    assert (
        error(seeded.get("/admin/v1/tenants/none", headers=ADMIN), 404)["message"]
        == "there is no Tenant 'none'"
    )
    answer = seeded.post(
        "/admin/v1/tenants", content=b"{", headers={**ADMIN, "content-type": "application/json"}
    )
    error(answer, 400)


def test_resources_are_written_read_and_removed(seeded: TestClient) -> None:
    answer = seeded.get("/admin/v1/models/sim/small", headers=ADMIN)
    body = answer.json()
    assert (body["object"], body["name"], body["manager"]) == ("model", "sim/small", "api")
    assert body["resource"]["versions"][0]["targets"] == [{"pool": "sim", "model": "m"}]
    etag = answer.headers["etag"]
    changed = {**MODEL, "drop_params": True}
    answer = seeded.put("/admin/v1/models/sim/small", json=changed, headers={**ADMIN, "if-match": etag})
    assert answer.json()["result"]["changed"] == ["Model/sim/small"]
    stale = seeded.put("/admin/v1/models/sim/small", json=MODEL, headers={**ADMIN, "if-match": etag})
    assert error(stale, 412)["code"] == "precondition_failed"
    error(seeded.put("/admin/v1/models/sim/small", json=MODEL, headers={**ADMIN, "if-none-match": "*"}), 412)
    error(seeded.post("/admin/v1/models", json=MODEL, headers=ADMIN), 412)
    error(seeded.put("/admin/v1/models/other", json=MODEL, headers=ADMIN), 400)
    error(seeded.put("/admin/v1/models/sim/small", json={**MODEL, "kind": "Pool"}, headers=ADMIN), 400)
    found = error(seeded.delete("/admin/v1/pools/sim", headers=ADMIN), 400)
    assert found["problems"] == ["Model/sim/small: versions.0.targets.0.pool: there is no Pool 'sim'"]
    assert seeded.delete("/admin/v1/models/sim/small", headers=ADMIN).json()["removed"] == ["Model/sim/small"]
    error(seeded.delete("/admin/v1/models/sim/small", headers=ADMIN), 404)


def test_a_wrong_resource_is_refused_with_every_problem(seeded: TestClient) -> None:
    found = error(seeded.put("/admin/v1/tenants/x", json={"wait": 1, "weight": -1}, headers=ADMIN), 400)
    assert found["code"] == "invalid_configuration"
    assert found["problems"] == [
        "Tenant/x: weight: should be greater than 0",
        "Tenant/x: wait: unknown key; did you mean 'weight'?",
    ]


def test_lists_are_paged(seeded: TestClient) -> None:
    first = seeded.get("/admin/v1/tenants?limit=1", headers=ADMIN).json()
    assert ([item["name"] for item in first["data"]], first["has_more"]) == (["acme"], True)
    second = seeded.get("/admin/v1/tenants?limit=1&after=acme", headers=ADMIN).json()
    assert ([item["name"] for item in second["data"]], second["has_more"]) == (["globex"], False)


def test_secrets_given_as_values_are_sealed(seeded: TestClient, services: Services) -> None:
    body = {
        "base_url": "https://api.example.com/v1",
        "api_key": "sk-canary-1",
        "secret_headers": {"x": "sk-canary-2"},
    }
    answer = seeded.put("/admin/v1/providers/openai", json=body, headers=ADMIN)
    assert answer.status_code == 200
    assert answer.json()["resource"]["api_key"].startswith("${sealed:")
    bundle = {
        "resources": [{"apiVersion": "airi/v1alpha1", "kind": "Provider", "metadata": {"name": "b"}, **body}]
    }
    found = error(seeded.post("/admin/v1/apply", json=bundle, headers=ADMIN), 400)
    assert "expected ${env:NAME}" in found["message"]
    answer2 = seeded.post("/admin/v1/apply?manager=api", json=bundle, headers=ADMIN)
    assert answer2.json()["created"] == ["Provider/b"]
    everything = [
        seeded.get(f"/admin/v1/{p}", headers=ADMIN).text for p in ("providers", "snapshots/current", "audit")
    ]
    assert "sk-canary" not in "".join([answer.text, found["message"], answer2.text, *everything])
    database = (services.settings.home / "airi.db").read_bytes() + (
        services.settings.home / "airi.db-wal"
    ).read_bytes()
    assert b"sk-canary" not in database
    found = error(
        seeded.put("/admin/v1/providers/c", json={**body, "api_key": ["sk-canary-3"]}, headers=ADMIN), 400
    )
    assert "canary" not in found["message"]


YAML = """\
apiVersion: airi/v1alpha1
kind: Tenant
metadata: {name: initech}
"""


def test_apply_takes_bundles(seeded: TestClient) -> None:
    as_yaml = {**ADMIN, "content-type": "application/yaml"}
    dry = seeded.post("/admin/v1/apply?dry_run=true", content=YAML, headers=as_yaml).json()
    assert (dry["dry_run"], dry["created"], dry["version"]) == (True, ["Tenant/initech"], 4)
    assert "+kind: Tenant" in dry["diff"][0]["text"]
    done = seeded.post("/admin/v1/apply?comment=first", content=YAML, headers=as_yaml).json()
    assert (done["version"], done["created"]) == (5, ["Tenant/initech"])
    again = seeded.post("/admin/v1/apply", content=YAML, headers=as_yaml).json()
    assert (again["version"], again["unchanged"]) == (5, 1)
    found = error(seeded.post("/admin/v1/apply", content=YAML + "wieght: 2\n", headers=as_yaml), 400)
    assert found["problems"] == ["bundle:4: Tenant/initech: wieght: unknown key; did you mean 'weight'?"]
    found = error(seeded.put("/admin/v1/tenants/initech", json={"weight": 2}, headers=ADMIN), 409)
    assert found["code"] == "managed_elsewhere"
    other = {"apiVersion": "airi/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme"}}
    error(seeded.post("/admin/v1/apply", json={"resources": [other]}, headers=ADMIN), 409)
    pruned = seeded.post("/admin/v1/apply?prune=true", json={"resources": []}, headers=ADMIN).json()
    assert pruned["removed"] == ["Tenant/initech"]
    error(seeded.post("/admin/v1/apply?expected_version=1", json={"resources": []}, headers=ADMIN), 412)
    for bad in (b"[]", b"{", b'{"resources": {}}'):
        error(seeded.post("/admin/v1/apply", content=bad, headers=ADMIN), 400)
    error(seeded.post("/admin/v1/apply", content=b"\xff", headers=as_yaml), 400)
    error(seeded.post("/admin/v1/apply?prun=true", json={"resources": []}, headers=ADMIN), 400)


def test_history_and_rollback(seeded: TestClient) -> None:
    seeded.put("/admin/v1/tenants/acme", json={"weight": 9}, headers=ADMIN)
    versions = seeded.get("/admin/v1/snapshots?limit=2", headers=ADMIN).json()
    assert ([v["version"] for v in versions["data"]], versions["has_more"]) == ([5, 4], True)
    assert versions["data"][0]["author"] == "admin"
    diff = seeded.get("/admin/v1/snapshots/5/diff", headers=ADMIN).json()["data"]
    assert [(d["kind"], d["name"], d["change"]) for d in diff] == [("Tenant", "acme", "changed")]
    result = seeded.post("/admin/v1/snapshots/4/rollback", headers=ADMIN).json()
    assert (result["version"], result["changed"]) == (6, ["Tenant/acme"])
    assert seeded.get("/admin/v1/snapshots/6/diff?against=4", headers=ADMIN).json()["data"] == []
    assert len(seeded.get("/admin/v1/snapshots/1", headers=ADMIN).json()["resources"]) == 1
    assert len(seeded.get("/admin/v1/snapshots/current", headers=ADMIN).json()["resources"]) == 4
    error(seeded.get("/admin/v1/snapshots/99", headers=ADMIN), 404)
    error(seeded.post("/admin/v1/snapshots/99/rollback", json={"comment": "x"}, headers=ADMIN), 404)


def test_keys_are_issued_changed_rotated_and_revoked(seeded: TestClient) -> None:
    body = {"tenant": "acme", "team": "core", "name": "ci", "budgets": [{"name": "month", "usd": 1.5}]}
    made = seeded.post("/admin/v1/keys", json=body, headers=ADMIN)
    assert made.status_code == 201
    record = made.json()
    token = record.pop("key")
    assert "digest" not in made.text
    assert record["budgets"] == [{"name": "month", "usd": 1.5, "window": "month", "mode": "hard"}]
    as_key = {"authorization": f"Bearer {token}"}
    assert seeded.get("/me", headers=as_key).json()["actor"] == f"key/{record['id']}"  # at once
    assert token not in seeded.get(f"/admin/v1/keys/{record['id']}", headers=ADMIN).text
    changed = seeded.patch(
        f"/admin/v1/keys/{record['id']}",
        json={"limits": {"requests_per_minute": 7}, "user": None},
        headers=ADMIN,
    ).json()
    assert (changed["limits"], changed["name"]) == ({"requests_per_minute": 7}, "ci")
    rotated = seeded.post(
        f"/admin/v1/keys/{record['id']}/rotate", json={"overlap": "1h"}, headers=ADMIN
    ).json()
    for live in (token, rotated["key"]):
        assert seeded.get("/me", headers={"authorization": f"Bearer {live}"}).status_code == 200
    assert len(rotated["older_secrets_until_ms"]) == 1
    assert seeded.delete(f"/admin/v1/keys/{record['id']}", headers=ADMIN).json()["revoked"]
    for dead in (token, rotated["key"]):
        assert error(seeded.get("/me", headers={"authorization": f"Bearer {dead}"}), 401)
    found = error(seeded.post(f"/admin/v1/keys/{record['id']}/rotate", headers=ADMIN), 409)
    assert found["code"] == "key_revoked"
    error(seeded.get("/admin/v1/keys/none", headers=ADMIN), 404)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tenant": "none"}, "tenant"),
        ({"tenant": "acme", "team": "none"}, "team"),
        ({"tenant": "acme", "role": "root"}, "role"),
        ({"tenant": "acme", "cidrs": ["x"]}, "cidrs"),
        ({"tenant": "acme", "expires_at_ms": 5}, "expires_at_ms"),
        ({"tenant": "acme", "budgets": [{"name": "b", "usd": -1}]}, "budgets.0.usd"),
        ({"tenant": "acme", "limits": {"requests_per_minute": "many"}}, "limits.requests_per_minute"),
        ({"tenant": "acme", "limits": {"requests_per_minute": -5}}, "limits.requests_per_minute"),
        ({"tenant": "acme", "limits": {"requests_per_minute": 10**30}}, "limits.requests_per_minute"),
        ({"tenant": "acme", "limits": {"rpm": 5}}, "limits.rpm"),
        ({"tenant": "acme", "expires_at_ms": 10**30}, "expires_at_ms"),
        ({"tenant": "acme", "expires_at_ms": 2**62}, "expires_at_ms"),
        ({"tenant": "acme", "name": "x" * 513}, "name"),
        ({"tenant": "acme", "user": "a\u0000b"}, "user"),
        ({"tenant": "acme", "budgets": [{"name": "b", "usd": 1}, {"name": "b", "usd": 2}]}, "budgets"),
        ({}, None),
        ({"tenant": "acme", "scope": 1}, None),
    ],
)
def test_wrong_keys_are_refused(seeded: TestClient, body: dict[str, Any], param: str | None) -> None:
    assert error(seeded.post("/admin/v1/keys", json=body, headers=ADMIN), 400)["param"] == param


def test_an_org_admin_stays_in_its_tenant(seeded: TestClient, services: Services) -> None:
    org = key(services, "org_admin")
    other = services.key_log.create(NewKey(tenant="globex"), actor="x")[0]
    made = seeded.post("/admin/v1/keys", json={"name": "mine"}, headers=org).json()
    assert made["tenant"] == "acme"
    error(seeded.post("/admin/v1/keys", json={"tenant": "globex"}, headers=org), 403)
    error(seeded.post("/admin/v1/keys", json={"role": "platform_admin"}, headers=org), 403)
    error(seeded.get(f"/admin/v1/keys/{other.id}", headers=org), 404)
    error(seeded.delete(f"/admin/v1/keys/{other.id}", headers=org), 404)
    error(seeded.patch(f"/admin/v1/keys/{other.id}", json={"name": "x"}, headers=org), 404)
    error(seeded.post(f"/admin/v1/keys/{other.id}/rotate", headers=org), 404)
    listed = seeded.get("/admin/v1/keys?tenant=globex", headers=org).json()["data"]
    assert {item["tenant"] for item in listed} == {"acme"}
    assert [t["name"] for t in seeded.get("/admin/v1/tenants", headers=org).json()["data"]] == ["acme"]
    assert seeded.get("/admin/v1/pools", headers=org).json()["data"] == []
    assert [m["name"] for m in seeded.get("/admin/v1/models", headers=org).json()["data"]] == ["sim/small"]
    error(seeded.get("/admin/v1/tenants/globex", headers=org), 404)
    for path, body in (("tenants/acme", {"weight": 99}), ("models/x", MODEL), ("pools/sim", POOL)):
        error(seeded.put(f"/admin/v1/{path}", json=body, headers=org), 403 if path != "models/x" else 400)
    for path in ("snapshots", "snapshots/current", "audit/verify"):
        error(seeded.get(f"/admin/v1/{path}", headers=org), 403)
    error(seeded.post("/admin/v1/apply", json={"resources": []}, headers=org), 403)
    error(seeded.post("/admin/v1/snapshots/1/rollback", headers=org), 403)
    assert {e["tenant"] for e in seeded.get("/admin/v1/audit?tenant=globex", headers=org).json()["data"]} == {
        "acme"
    }


def test_a_key_cannot_loosen_itself(seeded: TestClient, services: Services) -> None:
    org = key(services, "org_admin", models=("sim/*",))
    me = seeded.get("/me", headers=org).json()["actor"].removeprefix("key/")
    error(seeded.patch(f"/admin/v1/keys/{me}", json={"models": ["*"]}, headers=org), 403)
    error(seeded.patch(f"/admin/v1/keys/{me}", json={"budgets": []}, headers=org), 403)
    error(seeded.put(f"/admin/v1/limits/keys/{me}", json={"limits": {}}, headers=org), 403)
    assert seeded.patch(f"/admin/v1/keys/{me}", json={"name": "me"}, headers=org).json()["name"] == "me"
    assert "key" in seeded.post(f"/admin/v1/keys/{me}/rotate", headers=org).json()


def test_roles_without_rights(seeded: TestClient, services: Services) -> None:
    for role in ("developer", "service", "auditor", "policy_author"):
        error(seeded.post("/admin/v1/keys", json={}, headers=key(services, role)), 403)  # type: ignore[arg-type]
    error(seeded.get("/admin/v1/tenants", headers=key(services, "service")), 403)
    assert seeded.get("/admin/v1/audit", headers=key(services, "auditor")).status_code == 200
    assert seeded.get("/admin/v1/snapshots", headers=key(services, "platform_admin")).status_code == 200


def test_policies_are_drafted_and_approved_by_different_people(
    seeded: TestClient, services: Services
) -> None:
    author, approver = key(services, "policy_author"), key(services, "policy_approver")
    draft = {"tier": "org", "scope": {"tenants": ["acme"]}, "effect": "deny", "mode": "shadow"}
    url = "/admin/v1/policies/no-x"
    error(seeded.put(url, json={**draft, "mode": "enforce"}, headers=author), 403)
    error(seeded.put(url, json={**draft, "tier": "platform"}, headers=author), 403)
    error(seeded.put(url, json={**draft, "scope": {}}, headers=author), 403)
    error(seeded.put(url, json={**draft, "scope": {"tenants": ["globex"]}}, headers=author), 403)
    error(seeded.put(url, json=draft, headers=approver), 403)
    assert seeded.put(url, json=draft, headers=author).status_code == 200
    assert seeded.put(url, json={**draft, "mode": "enforce"}, headers=approver).status_code == 200
    error(seeded.put(url, json={**draft, "mode": "off"}, headers=author), 403)
    error(seeded.put(url, json={**draft, "mode": "enforce", "when": "false"}, headers=approver), 403)
    error(seeded.delete(url, headers=author), 403)
    assert seeded.put(url, json={**draft, "mode": "off"}, headers=approver).status_code == 200
    assert seeded.delete(url, headers=author).status_code == 200


def test_tools_of_a_tenant(seeded: TestClient, services: Services) -> None:
    org = key(services, "org_admin")
    http = {"url": "https://tools.example.com/x", "secret_headers": {"authorization": "Bearer canary"}}
    url = "/admin/v1/tools/search"
    error(seeded.put(url, json={"http": http}, headers=org), 403)
    error(seeded.put(url, json={"tenants": ["acme"], "function": "m:f"}, headers=org), 403)
    stolen = {**http, "secret_headers": {"x": "${env:OPENAI_API_KEY}"}}
    error(seeded.put(url, json={"tenants": ["acme"], "http": stolen}, headers=org), 403)
    error(
        seeded.put(url, json={"tenants": ["acme"], "http": {**http, "allow_private": True}}, headers=org), 400
    )
    written = seeded.put(url, json={"tenants": ["acme"], "http": http}, headers=org)
    assert written.status_code == 200
    assert "canary" not in written.text
    sealed = written.json()["resource"]["http"]
    moved = {**sealed, "url": "https://evil.example.com/x"}
    error(seeded.put(url, json={"tenants": ["acme"], "http": moved}, headers=org), 403)
    globex = key(services, "org_admin", "globex")
    error(seeded.get(url, headers=globex), 404)
    error(seeded.put(url, json={"tenants": ["globex"], "http": http}, headers=globex), 403)
    error(seeded.delete(url, headers=globex), 404)
    assert seeded.delete(url, headers=org).status_code == 200


def test_limits_and_budgets_of_every_scope(seeded: TestClient, services: Services) -> None:
    limits = {"limits": {"requests_per_minute": 60}}
    budgets = {"budgets": [{"name": "m", "usd": 2.5}]}
    record = services.key_log.create(NewKey(tenant="acme"), actor="x")[0]
    for scope in ("tenants/acme", "tenants/acme/teams/core", f"keys/{record.id}"):
        assert seeded.put(f"/admin/v1/limits/{scope}", json=limits, headers=ADMIN).status_code == 200, scope
        assert seeded.put(f"/admin/v1/budgets/{scope}", json=budgets, headers=ADMIN).status_code == 200, scope
    listed = seeded.get("/admin/v1/limits?tenant=acme", headers=ADMIN).json()["data"]
    assert [(item["scope"], item["limits"]) for item in listed] == [
        (scope, {"requests_per_minute": 60}) for scope in ("tenant", "team", "key")
    ]
    listed = seeded.get("/admin/v1/budgets", headers=key(services, "auditor")).json()["data"]
    assert [item["budgets"][0]["usd"] for item in listed] == [2.5, 2.5, 2.5]
    assert seeded.get("/admin/v1/budgets", headers=key(services, "auditor", "globex")).json()["data"] == []
    error(seeded.put("/admin/v1/limits/tenants/acme/teams/none", json=limits, headers=ADMIN), 404)
    error(seeded.put("/admin/v1/limits/tenants/none", json=limits, headers=ADMIN), 404)
    error(seeded.put("/admin/v1/limits/tenants/acme", json={"limits": {"rpm": 1}}, headers=ADMIN), 400)
    error(
        seeded.put(
            f"/admin/v1/limits/keys/{record.id}", json=limits, headers=key(services, "org_admin", "globex")
        ),
        404,
    )


def test_sessions(seeded: TestClient, services: Services) -> None:
    record, token = services.key_log.create(NewKey(tenant="acme", role="org_admin"), actor="x")
    answer = seeded.post("/sign-in", params={"key": token.reveal()})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert token.reveal() not in cookie
    assert seeded.get("/me").json()["actor"] == f"key/{record.id}"
    assert error(seeded.post("/admin/v1/keys", json={}), 403)["code"] == "csrf_failed"
    csrf = seeded.get("/token").json()
    assert seeded.post("/admin/v1/keys", json={}, headers={"x-csrf-token": csrf}).status_code == 201
    for headers in ({"origin": "http://evil.test"}, {"sec-fetch-site": "cross-site"}, {"x-csrf-token": "00"}):
        error(seeded.post("/admin/v1/keys", json={}, headers={"x-csrf-token": csrf, **headers}), 403)
    same = {"x-csrf-token": csrf, "origin": "http://airi.test", "sec-fetch-site": "same-origin"}
    assert seeded.post("/admin/v1/keys", json={}, headers=same).status_code == 201
    services.key_log.revoke(record.id, actor="x")
    seeded.delete("/admin/v1/keys/none", headers=ADMIN)
    assert wait_for_401(seeded)


def wait_for_401(client: TestClient) -> bool:
    """A revocation made elsewhere reaches this process within a second."""
    deadline = unix_ms() + 5_000
    while unix_ms() < deadline:
        if client.get("/me").status_code == 401:
            return True
    return False


def test_sessions_end_with_the_secret_and_cannot_be_forged(seeded: TestClient, services: Services) -> None:
    record, token = services.key_log.create(NewKey(tenant="acme"), actor="x")
    seeded.post("/sign-in", params={"key": token.reveal()})
    services.key_log.rotate(record.id, overlap_ms=60_000, actor="x")
    assert wait_for_401(seeded)
    seeded.post("/sign-in", params={"key": "the-admin-key"})
    assert seeded.get("/me").json() == {"actor": "admin", "tenant": None, "run": None}
    value = seeded.cookies["airi_session"]
    for forged in (value[:-2] + "AA", "", "x" * 2_000, "AAAA", value[4:]):
        seeded.cookies.clear()
        error(seeded.get("/me", headers={"cookie": f"airi_session={forged}"}), 401)
    error(seeded.post("/sign-in", params={"key": "wrong"}), 401)


def test_forms_carry_the_csrf_token_in_a_field(services: Services) -> None:
    app = FastAPI()
    http_errors.install(app)

    auditor = Depends(require(services, "audit.read"))

    @app.post("/form")
    async def form(request: Request, who: Principal = auditor) -> str:
        return str((await request.form())["x"])

    from gateway.control import sessions

    cookie = sessions.make(services.keyring, None, b"the-admin-key")
    token = sessions.csrf_token(services.keyring, cookie)
    with TestClient(app, cookies={"airi_session": cookie}) as client:
        assert client.post("/form", data={"x": "1", "csrf_token": token}).json() == "1"
        error(client.post("/form", data={"x": "1"}), 403)
        other = sessions.csrf_token(services.keyring, sessions.make(services.keyring, None, b"the-admin-key"))
        error(client.post("/form", data={"x": "1", "csrf_token": other}), 403)


def test_run_tokens_open_only_what_is_meant_for_them(seeded: TestClient, services: Services) -> None:
    record = services.key_log.create(NewKey(tenant="acme", role="org_admin"), actor="x")[0]

    def bearer(**change: Any) -> dict[str, str]:
        fields = {
            "tenant": "acme", "team": None, "key_id": record.id, "run_id": "run_1", "step": "s",
            "budget_usd_micros": None, "expires_at_ms": unix_ms() + 60_000, **change,
        }  # fmt: skip
        return {"authorization": f"Bearer {mint(services.keyring, RunClaims(**fields))}"}

    assert seeded.get("/me", headers=bearer()).json() == {
        "actor": f"key/{record.id}",
        "tenant": "acme",
        "run": "run_1",
    }
    error(seeded.get("/admin/v1/tenants", headers=bearer()), 403)
    error(seeded.get("/me", headers=bearer(tenant="globex")), 401)
    error(seeded.get("/me", headers=bearer(key_id="none")), 401)
    error(seeded.get("/me", headers=bearer(expires_at_ms=5)), 401)
    error(seeded.post("/sign-in", params={"key": bearer()["authorization"][7:]}), 401)


def test_scopes_of_keys_hold_here_too(seeded: TestClient, services: Services) -> None:
    only_v1 = key(services, "org_admin", routes=("/v1/*",))
    assert error(seeded.get("/admin/v1/tenants", headers=only_v1), 403)["code"] == "route_not_allowed"
    elsewhere = key(services, "org_admin", cidrs=("10.0.0.0/8",))
    spoofed = {**elsewhere, "x-forwarded-for": "10.1.1.1"}
    assert error(seeded.get("/admin/v1/tenants", headers=spoofed), 403)["code"] == "address_not_allowed"


def test_every_admin_write_is_in_the_audit_trail(seeded: TestClient, services: Services) -> None:
    org = key(services, "org_admin")
    made = seeded.post("/admin/v1/keys", json={}, headers=org).json()
    actor = seeded.get("/me", headers=org).json()["actor"]
    newest = seeded.get("/admin/v1/audit?limit=1", headers=ADMIN).json()
    assert (newest["data"][0]["actor"], newest["data"][0]["target"]) == (actor, f"key/{made['id']}")
    assert newest["has_more"]
    report = seeded.get("/admin/v1/audit/verify", headers=ADMIN).json()
    assert (report["ok"], report["entries"]) == (True, 6)
    anchored = f"anchor_seq={report['entries']}&anchor_digest={'0' * 64}"
    assert not seeded.get(f"/admin/v1/audit/verify?{anchored}", headers=ADMIN).json()["ok"]
    assert audit.verify(services.engine).ok


def test_the_api_describes_itself(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    operations = [op["operationId"] for path in schema["paths"].values() for op in path.values()]
    assert len(operations) == len(set(operations))
    assert "/admin/v1/policies/{name}" in schema["paths"]
