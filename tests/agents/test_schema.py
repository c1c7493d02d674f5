"""The migrations make the tables that the code believes in."""

from __future__ import annotations

from sqlalchemy import Engine as Database
from sqlalchemy import inspect

from agents.engine import prepare
from agents.schema import metadata


def test_migrations_agree_with_the_schema(any_engine: Database) -> None:
    prepare(any_engine)
    prepare(any_engine)
    found = inspect(any_engine)
    for table in metadata.sorted_tables:
        columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert columns == {column.name: bool(column.nullable) for column in table.columns}, table.name
        keys = found.get_pk_constraint(table.name)["constrained_columns"]
        assert keys == [column.name for column in table.primary_key.columns], table.name
        indexes = {index["name"] for index in found.get_indexes(table.name)}
        assert {index.name for index in table.indexes} <= indexes, table.name
