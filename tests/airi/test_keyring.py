"""The key ring, the vault, run tokens, the admin key."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from airi import tokens
from airi.database import write
from airi.errors import AuthenticationError, ConfigError
from airi.keyring import KeyRing, SealError, admin_key, read_or_make_key, secret_key_file
from airi.secrets import Secret
from airi.settings import Settings
from airi.storage import prepare
from airi.vault import Vault, vault

OLD, NEW = Secret("old-" * 10), Secret("new-" * 10)
RING = KeyRing([NEW, OLD])


def settings(home: Path, **environment: str) -> Settings:
    return Settings.from_environment({"AIRI_HOME": str(home), **environment})


@given(st.binary(max_size=200), st.text(max_size=30))
def test_what_is_sealed_opens_in_its_place_only(plain: bytes, context: str) -> None:
    sealed = RING.seal(plain, context)
    assert RING.open(sealed, context) == plain
    with pytest.raises(SealError, match="changed, or belongs to another place"):
        RING.open(sealed, context + "x")
    assert RING.seal(plain, context) != sealed


def test_the_old_member_opens_and_only_the_first_seals() -> None:
    before = KeyRing([OLD]).seal(b"x", "c")
    assert RING.open(before, "c") == b"x"
    assert not RING.sealed_with_current(before)
    assert RING.sealed_with_current(RING.seal(b"x", "c"))
    with pytest.raises(SealError, match="not in AIRI_SECRET_KEY: add the old key"):
        KeyRing([NEW]).open(before, "c")


@pytest.mark.parametrize("text", ["", "x", "v1.zz.x", "v1..", "v2.00000000.AAAA", "a.b.c.d", "v1.00000000.*"])
def test_mangled_boxes(text: str) -> None:
    with pytest.raises(SealError):
        RING.open(text, "c")


def test_a_flipped_bit_is_noticed() -> None:
    head, key_id, box = RING.seal(b"secret", "c").split(".")
    flipped = ("B" if box[30] != "B" else "C").join((box[:30], box[31:]))
    with pytest.raises(SealError):
        RING.open(f"{head}.{key_id}.{flipped}", "c")


def test_signatures_belong_to_their_purpose() -> None:
    signature = KeyRing([OLD]).sign(b"data", "one")
    assert RING.verify(b"data", signature, "one")
    assert not RING.verify(b"data", signature, "two")
    assert not RING.verify(b"other", signature, "one")
    assert not RING.verify(b"data", signature[:-1], "one")
    assert not RING.verify(b"data", b"", "one")
    assert not KeyRing([NEW]).verify(b"data", signature, "one")


def test_weak_and_missing_keys_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="at least 32"):
        KeyRing([Secret("short")])
    with pytest.raises(ConfigError, match="no key"):
        KeyRing([])
    with pytest.raises(ConfigError, match="no key"):
        KeyRing.open_for(settings(home, AIRI_SECRET_KEY=" , "))


def test_the_ring_of_the_environment_and_of_the_home(home: Path) -> None:
    ring = KeyRing.open_for(settings(home, AIRI_SECRET_KEY=f"{NEW.reveal()}, {OLD.reveal()}"))
    assert ring.open(KeyRing([OLD]).seal(b"x", "c"), "c") == b"x"
    assert not secret_key_file(settings(home)).exists()
    made = KeyRing.open_for(settings(home))
    assert secret_key_file(settings(home)).stat().st_mode & 0o777 == 0o600
    assert KeyRing.open_for(settings(home)).open(made.seal(b"x", "c"), "c") == b"x"


def test_processes_that_start_together_agree_on_a_key(tmp_path: Path) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        found.append(read_or_make_key(tmp_path / "deep" / "k").reveal())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["k"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text("x" * 40)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_or_make_key(path)
    path.chmod(0o600)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        read_or_make_key(path)


def test_the_admin_key(home: Path) -> None:
    assert admin_key(settings(home, AIRI_ADMIN_KEY="mine")).reveal() == "mine"
    made = admin_key(settings(home))
    assert made.reveal().startswith("airi_admin_")
    assert admin_key(settings(home)) == made
    assert (home / "admin.key").stat().st_mode & 0o777 == 0o600


def test_the_vault_keeps_seals_and_reseals(any_engine: Engine) -> None:
    prepare(any_engine)
    old = Vault(any_engine, KeyRing([OLD]))
    assert old.get("a") is None
    assert old.ensure("a", lambda: b"1") == b"1"
    assert old.ensure("a", lambda: b"2") == b"1"
    with write(any_engine) as connection:
        assert not old.put_in(connection, "a", b"3")
        assert old.put_in(connection, "b", b"4")
    both = Vault(any_engine, RING)
    assert both.reseal() == 2
    new = Vault(any_engine, KeyRing([NEW]))
    assert (new.get("a"), new.get("b")) == (b"1", b"4")
    with write(any_engine) as connection:
        boxes = dict(connection.execute(select(vault.c.name, vault.c.box)).all())
        connection.execute(vault.update().where(vault.c.name == "b").values(box=boxes["a"]))
    with pytest.raises(SealError):
        new.get("b")  # a value moved to another name does not open
    with write(any_engine) as connection:
        new.forget_in(connection, "a")
    assert new.get("a") is None


def test_racing_callers_get_one_value(any_engine: Engine) -> None:
    prepare(any_engine)
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(Vault(any_engine, RING).ensure("x", lambda: os.urandom(8)))
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


CLAIMS = tokens.RunClaims("acme", "core", "k1", "run_1", "plan", 5_000, 2_000)


def test_run_tokens() -> None:
    token = tokens.mint(KeyRing([OLD]), CLAIMS)
    assert token.startswith("airirun_")
    assert tokens.verify(RING, token, now_ms=1_999) == CLAIMS
    with pytest.raises(AuthenticationError, match="expired"):
        tokens.verify(RING, token, now_ms=2_000)
    with pytest.raises(AuthenticationError, match="expired"):
        tokens.verify(RING, token)
    with pytest.raises(AuthenticationError, match="signature"):
        tokens.verify(KeyRing([NEW]), token, now_ms=0)


@pytest.mark.parametrize(
    "token", ["", "airi_x", "airirun_", "airirun_*", "airirun_" + "A" * 3_000, "airirun_AAAA", "airirun_é"]
)
def test_mangled_run_tokens(token: str) -> None:
    with pytest.raises(AuthenticationError):
        tokens.verify(RING, token, now_ms=0)


@given(st.integers(8, 100), st.integers(1, 255))
def test_no_byte_of_a_run_token_can_be_changed(place: int, change: int) -> None:
    token = tokens.mint(RING, CLAIMS)
    place %= len(token) - 9
    place += 8
    other = chr((ord(token[place]) + change) % 128)
    if other == token[place]:
        return
    forged = token[:place] + other + token[place + 1 :]
    with contextlib.suppress(AuthenticationError):
        assert tokens.verify(RING, forged, now_ms=0) == CLAIMS  # only the padding bits of base64 may differ


def test_other_rooms_signatures_are_no_run_tokens() -> None:
    import base64

    data = b"anything"
    forged = "airirun_" + base64.urlsafe_b64encode(RING.sign(data, "session") + data).rstrip(b"=").decode()
    with pytest.raises(AuthenticationError, match="signature"):
        tokens.verify(RING, forged, now_ms=0)
    other = "airirun_" + base64.urlsafe_b64encode(RING.sign(data, "run token") + data).rstrip(b"=").decode()
    with pytest.raises(AuthenticationError, match="another release"):
        tokens.verify(RING, other, now_ms=0)
