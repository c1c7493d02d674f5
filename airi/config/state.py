"""The store's rows as objects: what a resource is in SQL, and reading the state of any version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec
from pydantic import ValidationError
from sqlalchemy import Connection, Row, func, select, true

from airi.config.document import ConfigDocument, body_of, encode_body
from airi.config.errors import UnknownResourceError
from airi.config.explain import explain
from airi.config.kinds import KINDS, AnyResource
from airi.config.positions import Where
from airi.config.schema import config_changes, config_head, config_resources, config_versions
from airi.errors import ConfigError

__all__ = [
    "EMPTY",
    "Key",
    "Manager",
    "State",
    "Stored",
    "VersionInfo",
    "body_of",
    "encode_body",
    "read_bodies",
    "read_head",
    "read_state",
    "read_state_at",
    "read_version",
]
Manager = Literal["file", "api", "adopted"]
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """A resource in the store. ``digest`` is its ETag; ``version`` the one in which it last changed."""

    resource: AnyResource
    manager: Manager
    version: int
    digest: str

    @property
    def key(self) -> Key:
        """Kind and name."""
        return self.resource.kind, self.resource.metadata.name


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version of the configuration. ``change`` is apply, put, delete or rollback."""

    version: int
    digest: str
    author: str
    change: str
    comment: str
    created_at_ms: int


@dataclass(frozen=True)
class State:
    """All resources of one version."""

    version: int
    digest: str
    resources: dict[Key, Stored]

    @cached_property
    def document(self) -> ConfigDocument:
        """The resources as a document."""
        found = {key: stored.resource for key, stored in self.resources.items()}
        return ConfigDocument(found, self.version, known_digest=self.digest)


EMPTY = State(0, ConfigDocument({}).digest, {})


def read_head(connection: Connection) -> int:
    """Return the version that serves."""
    return int(connection.scalars(select(config_head.c.version)).one())


def read_state(connection: Connection, known: State = EMPTY) -> State:
    """Return the newest state: from the changes since ``known``, or whole when nothing is known.

    Statements may see a later commit than those before them. The whole state is therefore read in one; changes are
    read up to a fixed version from a table that only grows.
    """
    version = read_head(connection)
    if version == known.version:
        return known
    if known is EMPTY or version < known.version:  # lower: a restored database, what is in memory never was
        return _read_whole(connection)
    return _apply_changes(connection, known, version)


def read_state_at(connection: Connection, version: int) -> State:
    """Return the state of a version; :class:`UnknownResourceError` when there was none."""
    return _apply_changes(connection, EMPTY, version)


def read_version(connection: Connection, version: int) -> VersionInfo:
    """Return what is known of a version; :class:`UnknownResourceError`."""
    row = connection.execute(select(config_versions).where(config_versions.c.version == version)).first()
    if row is None:
        raise UnknownResourceError(f"there is no version {version} of the configuration")
    return VersionInfo(**row._mapping)


def read_bodies(connection: Connection, version: int) -> dict[Key, dict[str, Any]]:
    """Return all resources of a version as plain data, as they were written."""
    return {
        (row.kind, row.name): msgspec.json.decode(row.body)
        for row in _newest(connection, 0, version)
        if row.body
    }


def _read_whole(connection: Connection) -> State:
    query = select(config_head.c.version.label("head"), config_resources).outerjoin(config_resources, true())
    rows = connection.execute(query).all()
    return _build(connection, EMPTY, rows[0].head, [row for row in rows if row.kind is not None])


def _apply_changes(connection: Connection, known: State, version: int) -> State:
    return _build(connection, known, version, _newest(connection, known.version, version))


def _build(connection: Connection, known: State, version: int, rows: Sequence[Row[Any]]) -> State:
    """Return ``known`` with the rows' resources put in (or taken out, where the body is NULL)."""
    digest = EMPTY.digest if version == 0 else read_version(connection, version).digest
    resources = dict(known.resources)
    problems: list[str] = []
    for row in rows:
        key = (row.kind, row.name)
        if row.body is None:
            resources.pop(key, None)
            continue
        where = Where(*key)
        try:
            resource = KINDS[row.kind].model_validate(msgspec.json.decode(row.body))
        except KeyError:
            problems.append(f"{where()}: this release knows no such kind")
        except ValidationError as error:
            problems += explain(error, KINDS[row.kind], where)
        else:
            resources[key] = Stored(resource, row.manager, row.version, row.digest)
    if problems:
        raise ConfigError(["the stored configuration is of another release of AIRI:", *problems])
    return State(version, digest, resources)


def _newest(connection: Connection, after: int, version: int) -> list[Row[Any]]:
    """Each resource's newest row among the changes after ``after`` up to ``version``."""
    changes = config_changes.c
    newest = (
        select(changes.kind, changes.name, func.max(changes.version).label("version"))
        .where(changes.version > after, changes.version <= version)
        .group_by(changes.kind, changes.name)
        .subquery()
    )
    return list(
        connection.execute(
            select(config_changes)
            .join(
                newest,
                (changes.kind == newest.c.kind)
                & (changes.name == newest.c.name)
                & (changes.version == newest.c.version),
            )
            .order_by(changes.kind, changes.name)
        )
    )
