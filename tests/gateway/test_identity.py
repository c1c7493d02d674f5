"""Tokens of an issuer on a live tree: on model routes, on the control plane, in the record."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.live import Live, wait_until

pytestmark = pytest.mark.integration
CHAT = {"model": "sim/small", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
ENDED = ("completed", "failed", "cancelled")
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Issuer(BaseHTTPRequestHandler):
    """Publishes one key."""

    def do_GET(self) -> None:
        body = {"keys": [{**jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "k"}]}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(5)


def token(issuer: str, subject: str = "ann", **claims: Any) -> str:
    body = {"iss": issuer, "aud": "airi", "sub": subject, "exp": time.time() + 600, **claims}
    return jwt.encode(body, KEY, algorithm="RS256", headers={"kid": "k"})


@pytest.fixture(scope="module")
def acme(live: Live, issuer: str) -> str:
    """A tenant that trusts the issuer."""
    tenant = {
        "kind": "Tenant", "metadata": {"name": "acme"}, "teams": [{"name": "red"}],
        "identity": {
            "issuer": issuer, "audience": ["airi"], "jwks_url": f"{issuer}/keys", "team_claim": "team",
            "role_claim": "roles", "roles": {"boss": "org_admin"},
        },
    }  # fmt: skip
    with live.admin() as admin:
        admin.put("/admin/v1/tenants/acme", json=tenant).raise_for_status()
    with live.client(token(issuer, team="red")) as client:
        wait_until(lambda: client.get("/v1/models").status_code == 200)
    return "acme"


def test_a_token_calls_models_and_the_record_names_its_user(live: Live, issuer: str, acme: str) -> None:
    with live.client(token(issuer, team="red")) as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "user": "somebody else"})
        assert answer.status_code == 200, answer.text
    trace = answer.headers["x-airi-trace-id"]
    with live.admin() as admin:
        found = wait_until(
            lambda: (got := admin.get(f"/admin/v1/traces/{trace}")).status_code == 200 and got.json(), 20
        )
    text = json.dumps(found)
    assert '"acme"' in text
    assert '"red"' in text
    assert '"ann"' in text
    assert "oidc-" in text
    assert "somebody else" not in text


def test_the_control_plane_takes_tokens_by_their_role(live: Live, issuer: str, acme: str) -> None:
    with live.client(token(issuer, team="red")) as developer:
        assert developer.get("/admin/v1/models").status_code == 200
        assert developer.post("/admin/v1/keys", json={"tenant": "acme"}).status_code == 403
    with live.client(token(issuer, "eve", team="red", roles=["boss"])) as boss:
        made = boss.post("/admin/v1/keys", json={"tenant": "acme", "team": "red"})
        assert made.status_code in (200, 201), made.text
        assert boss.post("/admin/v1/keys", json={"tenant": "dev"}).status_code == 403
        assert (
            boss.post("/admin/v1/keys", json={"tenant": "acme", "role": "platform_admin"}).status_code == 403
        )
        assert boss.put("/admin/v1/tenants/acme", json={"weight": 5}).status_code == 403
        audit = boss.get("/admin/v1/audit").text
    assert "identity/acme/eve" in audit


def test_what_is_not_to_be_trusted_is_a_401_or_a_403_in_openais_form(
    live: Live, issuer: str, acme: str
) -> None:
    cases = [
        (token(issuer, team="red", aud="other"), 401, "invalid_token"),
        (token(issuer, team="red", exp=time.time() - 600), 401, "token_expired"),
        (token(issuer, team="green"), 403, "token_not_mapped"),
        (token("https://elsewhere.test", team="red"), 401, "invalid_token"),
    ]
    for bad, status, code in cases:
        for path in ("/v1/chat/completions", "/admin/v1/keys"):
            with live.client(bad) as client:
                answer = client.post(path, json=CHAT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
            assert bad not in answer.text


def test_a_workflow_started_by_a_token_runs_under_its_name(live: Live, issuer: str, acme: str) -> None:
    workflow = {
        "kind": "Workflow", "metadata": {"name": "greet"},
        "steps": [{"id": "say", "call": "llm", "with": {"model": "sim/small", "prompt": "Say hello."}}],
    }  # fmt: skip
    with live.admin() as admin:
        made = admin.put("/admin/v1/workflows/greet", json=workflow)
        assert made.status_code == 200, made.text
    with live.client(token(issuer, team="red")) as client:
        started = wait_until(
            lambda: (
                (got := client.post("/v1/workflows/greet/runs", json={"inputs": {}})).status_code < 300
                and got.json()
            )
        )
        run = wait_until(
            lambda: (got := client.get(f"/v1/runs/{started['id']}").json())["state"] in ENDED and got,
            60,
        )
    assert run["state"] == "completed", run
