"""The ground floor's tables: migrations make what the code expects, once, in every database."""

from __future__ import annotations

from sqlalchemy import Engine, MetaData, inspect

from airi import audit, content, stored_responses, vault
from airi.config.schema import metadata as config_metadata
from airi.content import ContentStore
from airi.keyring import KeyRing
from airi.keys import KeyLog, NewKey, refresh
from airi.keys.schema import metadata as keys_metadata
from airi.secrets import Secret
from airi.storage import ROOMS, prepare, reseal

DECLARED: list[MetaData] = [
    config_metadata,
    keys_metadata,
    audit.audit.metadata,
    content.content.metadata,
    vault.vault.metadata,
    stored_responses.responses.metadata,
]


def test_migrations_and_declarations_agree(any_engine: Engine) -> None:
    assert prepare(any_engine) == sum(len(migrations) for _, migrations in ROOMS)
    assert prepare(any_engine) == 0
    found = inspect(any_engine)
    tables = {"schema_migrations"}
    for metadata in DECLARED:
        for table in metadata.sorted_tables:
            tables.add(table.name)
            columns = {column["name"]: column for column in found.get_columns(table.name)}
            assert set(columns) == {column.name for column in table.columns}
            for column in table.columns:
                assert columns[column.name]["nullable"] in (column.nullable, column.primary_key), column
            key = found.get_pk_constraint(table.name)["constrained_columns"]
            assert set(key) == {column.name for column in table.primary_key}
    assert set(found.get_table_names()) == tables


def test_a_rotation_of_the_ring_is_finished_by_resealing(any_engine: Engine) -> None:
    prepare(any_engine)
    old, new = Secret("o" * 40), Secret("n" * 40)
    ref = ContentStore(any_engine, KeyRing([old])).put("t", b"data", "keep")
    _, token = KeyLog(any_engine, None, KeyRing([old])).create(NewKey(tenant="t"), actor="a")
    assert reseal(KeyRing([new, old]), any_engine) == 2
    assert reseal(KeyRing([new, old]), any_engine) == 0
    assert ContentStore(any_engine, KeyRing([new])).get("t", ref) == b"data"
    log = KeyLog(any_engine, None, KeyRing([new]))
    key_map = log.new_map()
    refresh(key_map, log)
    key_map.authenticate(token.reveal())
