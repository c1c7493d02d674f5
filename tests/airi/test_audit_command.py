"""`airi audit verify`: a whole chain, and every way in which one is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from airi import audit
from airi.cli import main
from airi.database import open_engine
from airi.settings import Settings
from airi.storage import prepare

Said = pytest.CaptureFixture[str]


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    """The database of this home, with three entries."""
    engine = open_engine(Settings(home=home).effective_database_url, full_sync=True)
    prepare(engine)
    with engine.begin() as connection:
        for number in range(3):
            audit.append(connection, audit.Note("ann", "key.create", f"key/{number}", "acme", {"n": number}))
    yield engine
    engine.dispose()


def alter(engine: Engine, *statements: str) -> None:
    """What somebody with the database's file can do."""
    with engine.begin() as connection:
        for name in ("audit_no_update", "audit_no_delete"):
            connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
        for statement in statements:
            connection.execute(text(statement))


def verified(said: Said, *words: str) -> tuple[int, dict[str, object]]:
    code = main(["audit", "verify", "--output", "json", *words])
    return code, json.loads(said.readouterr().out)


def test_a_whole_chain_and_its_head(engine: Engine, capsys: Said) -> None:
    assert main(["audit", "verify"]) == 0
    head = capsys.readouterr().out.splitlines()[-1]
    assert head.startswith("3:")
    code, found = verified(capsys, "--anchor", head)
    assert (code, found["ok"], found["entries"], found["head"]) == (0, True, 3, head.removeprefix("3:"))
    with engine.begin() as connection:
        audit.append(connection, audit.Note("ann", "key.revoke", "key/1", "acme"))
    assert verified(capsys, "--anchor", head)[0] == 0, "a chain that has grown still holds its earlier head"


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["UPDATE audit SET actor = 'bob' WHERE seq = 2"], "entry 2 was changed"),
        (["DELETE FROM audit WHERE seq = 2"], "entry 2 is missing"),
        (["DELETE FROM audit WHERE seq = 3"], "the chain ends at entry 2, its head says 3"),
    ],
)
def test_what_was_altered_is_named(engine: Engine, capsys: Said, statements: list[str], problem: str) -> None:
    alter(engine, *statements)
    assert main(["audit", "verify"]) == 1
    assert capsys.readouterr().out.startswith(f"NO  {problem}\n")


def test_a_chain_that_was_cut_or_made_anew_misses_the_noted_head(engine: Engine, capsys: Said) -> None:
    with engine.connect() as connection:
        digests = list(connection.execute(text("SELECT digest FROM audit ORDER BY seq")).scalars())
    alter(
        engine,
        "DELETE FROM audit WHERE seq = 3",
        f"UPDATE audit_head SET seq = 2, digest = '{digests[1]}'",
    )
    assert verified(capsys)[0] == 0, "a chain that was cut with its head is whole in itself"
    code, found = verified(capsys, "--anchor", f"3:{digests[2]}")
    assert (code, found["problem"]) == (1, "the anchored entry 3 is missing: the chain was shortened")
    with engine.begin() as connection:
        audit.append(connection, audit.Note("eve", "key.create", "key/9", "acme"))
    code, found = verified(capsys, "--anchor", f"3:{digests[2]}")
    assert (code, found["problem"]) == (1, "entry 3 is not the anchored one")


def test_a_home_without_a_trail_is_said_in_words(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    assert main(["audit", "verify"]) == 1
    assert "no audit trail yet" in capsys.readouterr().err
    monkeypatch.setenv("AIRI_HOME", str(home / "nowhere"))
    assert main(["audit", "verify"]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (home / "nowhere").exists()
    monkeypatch.setenv("AIRI_DATABASE_URL", "postgresql://airi:hunter2@127.0.0.1:1/airi")
    assert main(["audit", "verify"]) == 1
    assert capsys.readouterr().err == "airi: AIRI_DATABASE_URL does not answer\n"


@pytest.mark.parametrize("anchor", ["3", "0:" + "a" * 64, "3:xyz", ""])
def test_an_anchor_that_is_none_is_refused(anchor: str, capsys: Said) -> None:
    assert main(["audit", "verify", "--anchor", anchor]) == 2
    assert "SEQ:DIGEST" in capsys.readouterr().err
