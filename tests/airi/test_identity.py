"""Tokens of an issuer: what is taken, what is refused, and what an issuer that is away changes."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from airi.config.document import ConfigDocument
from airi.config.kinds import Identity, Tenant
from airi.config.loader import load_data
from airi.config.validation import check
from airi.errors import ConfigError
from airi.http.server import Request, Server, serve
from airi.identity import (
    Identities,
    IdentityUnavailableError,
    TokenRefusedError,
    is_identity,
    is_token,
    keyset,
)
from airi.identity.errors import TokenClaimsError
from airi.identity.keyset import KeySet, parse

AUDIENCE = "airi"


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    """Return a public key as a JWKS lists it."""
    algorithm = (
        jwt.algorithms.ECAlgorithm
        if isinstance(key, ec.EllipticCurvePrivateKey)
        else jwt.algorithms.RSAAlgorithm
    )
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **more}


class Issuer:
    """An issuer on loopback: its discovery document, its keys, and a switch to be away."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.away = False
        self.reads = 0
        self.base = ""
        self.server: Server | None = None

    async def start(self) -> None:
        self.server = await serve(self._answer, host="127.0.0.1", port=0)
        self.base = f"http://127.0.0.1:{self.server.port}"

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close_listeners()
        await self.server.drain(1)

    async def _answer(self, request: Request) -> None:
        if self.away:
            request.respond(503, [], b"")
        elif request.path == "/.well-known/openid-configuration":
            body = {"issuer": self.base, "jwks_uri": f"{self.base}/keys"}
            request.respond(200, [], json.dumps(body).encode())
        else:
            self.reads += 1
            keys = [jwk(key, kid) for kid, key in self.keys.items()]
            request.respond(200, [], json.dumps({"keys": keys}).encode())

    def token(self, kid: str = "one", *, algorithm: str = "RS256", key: Any = None, **claims: Any) -> str:
        body = {"iss": self.base, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 600, **claims}
        return jwt.encode(body, key or self.keys[kid], algorithm=algorithm, headers={"kid": kid})


@pytest.fixture(scope="session")
def rsa_keys() -> list[RSAPrivateKey]:
    return [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]


@pytest.fixture
async def issuer(rsa_keys: list[RSAPrivateKey]) -> AsyncIterator[Issuer]:
    issuer = Issuer()
    issuer.keys["one"] = rsa_keys[0]
    await issuer.start()
    yield issuer
    await issuer.stop()


def document(issuer: Issuer, **identity: Any) -> ConfigDocument:
    body = {
        "metadata": {"name": "acme"},
        "teams": [{"name": "red"}, {"name": "blue"}],
        "identity": {"issuer": issuer.base, "audience": [AUDIENCE], **identity},
    }
    return ConfigDocument.of([Tenant.model_validate(body)])


def trusting(issuer: Issuer, **identity: Any) -> Identities:
    identities = Identities()
    identities.apply(document(issuer, **identity))
    return identities


async def test_a_token_stands_for_its_subject(issuer: Issuer) -> None:
    identities = trusting(
        issuer, user_claim="email", team_claim="groups", teams={"g-17": "red"}, role_claim="realm.roles",
        roles={"boss": "org_admin", "reader": "auditor"}, models=["small*"],
    )  # fmt: skip
    token = issuer.token(email="ann@acme.test", groups=["x", "g-17"], realm={"roles": ["reader", "boss"]})
    assert is_token(token)
    record = await identities.authenticate(token)
    assert is_identity(record.id)
    assert (record.tenant, record.team, record.user, record.role) == (
        "acme",
        "red",
        "ann@acme.test",
        "org_admin",
    )
    assert record.models == ("small*",)
    # Another token of the same person is the same record; another person is another one.
    again = issuer.token(email="ann@acme.test", groups=["g-17"], realm={"roles": ["boss"]}, jti="2")
    assert await identities.authenticate(again) is record
    other = issuer.token(sub="bob", groups=["blue"], realm={"roles": []})
    found = await identities.authenticate(other)
    assert (found.id != record.id, found.team, found.role, found.user) == (True, "blue", "developer", "bob")


async def test_a_remembered_token_costs_no_reading_and_ends_when_it_expires(issuer: Issuer) -> None:
    now = [time.time()]
    identities = Identities(unix_s=lambda: now[0])
    identities.apply(document(issuer, leeway=0))
    token = issuer.token(exp=now[0] + 1)
    record = await identities.authenticate(token)
    issuer.away = True
    assert await identities.authenticate(token) is record
    now[0] += 2
    await asyncio.sleep(max(0.0, now[0] - time.time()))
    with pytest.raises(TokenRefusedError, match="expired"):
        await identities.authenticate(token)
    assert issuer.reads == 1


def unsigned(issuer: Issuer) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = {"iss": issuer.base, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 600}
    return f"{part({'alg': 'none', 'kid': 'one'})}.{part(claims)}."


def signed_with_the_public_key(issuer: Issuer) -> str:
    """The classic: HS256 with the issuer's public key as the secret."""
    import hashlib
    import hmac

    header, claims, _ = unsigned(issuer).split(".")
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').rstrip(b"=").decode()
    secret = issuer.keys["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = hmac.new(secret, f"{header}.{claims}".encode(), hashlib.sha256).digest()
    return f"{header}.{claims}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGED: dict[str, Callable[[Issuer, Any], str]] = {
    "wrong audience": lambda issuer, _: issuer.token(aud="somebody else"),
    "no audience": lambda issuer, _: issuer.token(aud=None),
    "wrong issuer": lambda issuer, _: issuer.token(iss="https://evil.test"),
    "issuer with a slash more": lambda issuer, _: issuer.token(iss=issuer.base + "/"),
    "expired": lambda issuer, _: issuer.token(exp=time.time() - 120),
    "without expiry": lambda issuer, _: issuer.token(exp=None),
    "not valid yet": lambda issuer, _: issuer.token(nbf=time.time() + 600),
    "without subject": lambda issuer, _: issuer.token(sub=None),
    "another algorithm": lambda issuer, _: issuer.token(algorithm="RS512"),
    "algorithm none": lambda issuer, _: unsigned(issuer),
    "HS256 with the public key": lambda issuer, _: signed_with_the_public_key(issuer),
    "another's key under a known name": lambda issuer, other: issuer.token(key=other),
    "a key nobody publishes": lambda issuer, other: issuer.token(kid="two", key=other),
    "a changed claim": lambda issuer, _: _with_claims(issuer.token(), sub="root"),
    "no base64": lambda issuer, _: "eyJ!.e30.x",
    "no JSON": lambda issuer, _: "eyJhbGc.e30.x",
    "too long": lambda issuer, _: issuer.token(more="x" * 9_000),
}


def _with_claims(token: str, **claims: Any) -> str:
    header, body, signature = token.split(".")
    data = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | claims
    return f"{header}.{base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b'=').decode()}.{signature}"


@pytest.mark.parametrize("name", FORGED)
async def test_what_is_not_to_be_trusted_is_refused(
    name: str, issuer: Issuer, rsa_keys: list[RSAPrivateKey]
) -> None:
    identities = trusting(issuer)
    with pytest.raises(TokenRefusedError) as raised:
        await identities.authenticate(FORGED[name](issuer, rsa_keys[1]))
    assert raised.value.status == 401
    # The genuine one still passes.
    assert (await identities.authenticate(issuer.token())).tenant == "acme"


async def test_a_token_must_hold_what_the_tenant_requires(issuer: Issuer) -> None:
    identities = Identities()
    tenants = [
        Tenant.model_validate(
            {"metadata": {"name": name}, "identity": {"issuer": issuer.base, "audience": [AUDIENCE], "require": {"org.id": name}}}
        )
        for name in ("a", "b")
    ]  # fmt: skip
    identities.apply(ConfigDocument.of(tenants))
    assert (await identities.authenticate(issuer.token(org={"id": "b"}))).tenant == "b"
    with pytest.raises(TokenRefusedError):
        await identities.authenticate(issuer.token(org={"id": "c"}))
    assert issuer.reads == 1, "two tenants of one issuer share its keys"


async def test_claims_that_name_no_place_are_forbidden(issuer: Issuer) -> None:
    identities = trusting(
        issuer, team_claim="team", role_claim="role", roles={"x": "auditor"}, default_role="none"
    )
    with pytest.raises(TokenClaimsError, match="no team"):
        await identities.authenticate(issuer.token(team="green", role="x"))
    with pytest.raises(TokenClaimsError, match="no role"):
        await identities.authenticate(issuer.token(team="red", role="platform_admin"))


async def test_keys_rotate_and_unknown_names_cause_one_reading(
    issuer: Issuer, rsa_keys: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = trusting(issuer)
    await identities.authenticate(issuer.token())
    issuer.keys["two"] = rsa_keys[1]
    for _ in range(20):  # within the cool-down nobody asks the issuer again
        with pytest.raises(TokenRefusedError):
            await identities.authenticate(issuer.token("two", jti=str(_)))
    assert issuer.reads == 1
    monkeypatch.setattr(keyset, "COOLDOWN_S", 0.0)
    tokens = [issuer.token("two", jti=str(number)) for number in range(10)]
    found = await asyncio.gather(*(identities.authenticate(token) for token in tokens))
    assert len({id(record) for record in found}) == 1
    assert issuer.reads == 2, "those who ask at once share one reading"
    del issuer.keys["one"]  # withdrawn: refused as soon as the keys are read again
    with pytest.raises(TokenRefusedError):
        await identities.authenticate(issuer.token("three", key=rsa_keys[0]))
    with pytest.raises(TokenRefusedError):
        await identities.authenticate(issuer.token("one", key=rsa_keys[0], jti="new"))


async def test_an_issuer_that_was_never_read_is_503_and_one_that_leaves_changes_nothing(
    issuer: Issuer, rsa_keys: list[RSAPrivateKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "COOLDOWN_S", 0.0)
    issuer.away = True
    identities = trusting(issuer)
    with pytest.raises(IdentityUnavailableError) as raised:
        await identities.authenticate(issuer.token())
    assert raised.value.status == 503
    issuer.away = False
    await identities.authenticate(issuer.token())
    issuer.away = True
    await identities.authenticate(issuer.token(jti="another"))  # the keys are in memory
    with pytest.raises(IdentityUnavailableError):  # perhaps rotated: not ours to say that it is wrong
        await identities.authenticate(issuer.token("two", key=rsa_keys[1]))


async def test_a_change_of_the_tenant_ends_what_was_remembered(issuer: Issuer) -> None:
    identities = trusting(issuer, team_claim="team")
    token = issuer.token(team="red")
    assert (await identities.authenticate(token)).team == "red"
    identities.apply(document(issuer, team_claim="team", audience=["other"]))
    with pytest.raises(TokenRefusedError):
        await identities.authenticate(token)
    identities.apply(ConfigDocument.of([]))
    with pytest.raises(TokenRefusedError):
        await identities.authenticate(token)
    assert issuer.reads == 1


async def test_elliptic_keys_files_and_addresses(issuer: Issuer, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [jwk(key, "e", alg="ES256")]}))
    identities = trusting(issuer, jwks_file=str(path), algorithms=["RS256", "ES256"])
    assert (await identities.authenticate(issuer.token("e", key=key, algorithm="ES256"))).tenant == "acme"
    with pytest.raises(TokenRefusedError):  # an RSA token under the elliptic key's name
        await identities.authenticate(issuer.token("e", key=issuer.keys["one"]))
    direct = trusting(issuer, jwks_url=issuer.base + "/keys")
    assert (await direct.authenticate(issuer.token())).tenant == "acme"


async def test_memory_is_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    from airi.identity import live

    monkeypatch.setattr(live, "MAX_REMEMBERED", 4)
    identities = trusting(issuer)
    for number in range(10):
        await identities.authenticate(issuer.token(sub=f"user-{number}"))
    assert len(identities._remembered) <= 4
    assert len(identities._subjects) <= 4


def test_keys_that_cannot_be_used_are_left_out(rsa_keys: list[RSAPrivateKey]) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    good = jwk(rsa_keys[0], "good")
    rest = [
        jwk(weak, "weak"), {**jwk(rsa_keys[1], "enc"), "use": "enc"}, {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"}, {"kty": "new", "kid": "new"},
    ]  # fmt: skip
    assert set(parse(json.dumps({"keys": [*rest, good]}).encode())) == {"good", None}
    for data in (b"", b"[]", b"{}", b'{"keys":[1]}', json.dumps({"keys": rest}).encode()):
        with pytest.raises(ValueError, match=r"(?i)key"):
            parse(data)


async def test_an_answer_without_end_is_cut(issuer: Issuer) -> None:
    async def endless(_identity: Identity) -> bytes:
        await asyncio.sleep(60)
        return b""

    keys = KeySet(Identity(issuer=issuer.base, audience=[AUDIENCE]), endless)
    keyset_wait = keyset.WAIT_S
    try:
        keyset.WAIT_S = 0.05
        with pytest.raises(IdentityUnavailableError):
            await keys.find("one")
    finally:
        keyset.WAIT_S = keyset_wait
        assert keys._reading is not None
        keys._reading.cancel()


def refused(**identity: Any) -> str:
    """Return why a tenant with this identity is refused; empty when it is not."""
    body = {"issuer": "https://login.test", "audience": ["a"], **identity}
    data = {"apiVersion": "airi/v1alpha1", "kind": "Tenant", "metadata": {"name": "t"}, "identity": body}
    try:
        return "\n".join(check(ConfigDocument.of(item.resource for item in load_data([data]))).problems)
    except ConfigError as error:
        return error.message


def test_configuration_that_would_not_be_safe_is_refused() -> None:
    assert refused() == ""
    assert "HS256" in refused(algorithms=["HS256"])
    assert "none" in refused(algorithms=["none"])
    assert "https" in refused(jwks_url="http://login.test/keys")
    assert refused(jwks_url="http://127.0.0.1:9/keys") == ""
    assert "platform_admin" in refused(role_claim="r", roles={"x": "platform_admin"})
    assert "role_claim" in refused(roles={"x": "auditor"})
    assert "no team" in refused(team_claim="t", teams={"x": "nowhere"})
    assert "audience" in refused(audience=[])
    both = [
        Tenant.model_validate(
            {"metadata": {"name": name}, "identity": {"issuer": "https://i.test", "audience": ["a"]}}
        )
        for name in "ab"
    ]
    assert "tell them apart" in "\n".join(check(ConfigDocument.of(both)).problems)
