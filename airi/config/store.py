"""The versioned store of the configuration in SQL.

Every accepted write makes a version: a number, the content's digest, an author, and rows saying what it changed, from
which any earlier state can be read. A write is checked whole before it is stored, and refused whole. Each resource says who
manages it: ``file`` (applied from files), ``api``, or ``adopted`` (found by discovery); only its manager changes it,
except that an adopted one gives way to anybody. API keys live elsewhere (:mod:`airi.keys`): no rollback touches them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, insert, select, update

from airi.clock import unix_ms
from airi.config.commit import (
    ApplyResult,
    check_sealed,
    result_of,
    state_after,
    write_audit,
    write_rows,
)
from airi.config.diff import ResourceDiff, compare
from airi.config.document import ConfigDocument
from airi.config.edits import (
    Edit,
    Plan,
    SealedValue,
    adopt_edit,
    apply_edit,
    delete_edit,
    put_edit,
    rollback_edit,
)
from airi.config.errors import UnknownResourceError
from airi.config.kinds import AnyResource
from airi.config.loader import LoadedResource
from airi.config.notify import announce
from airi.config.positions import Where
from airi.config.schema import config_head, config_versions
from airi.config.state import (
    EMPTY,
    Key,
    Manager,
    State,
    Stored,
    VersionInfo,
    read_bodies,
    read_head,
    read_state,
    read_state_at,
    read_version,
)
from airi.config.validation import Advisers, Validators, check
from airi.database import write
from airi.errors import ConfigError, UnavailableError
from airi.vault import Vault

if TYPE_CHECKING:
    import redis

_ATTEMPTS = 20


class ConfigStore:
    """Blocking; call it in a thread. One instance serves any number of threads."""

    def __init__(
        self,
        engine: Engine,
        client: redis.Redis | None = None,
        *,
        validators: Validators | None = None,
        advisers: Advisers | None = None,
        sealing: Vault | None = None,
    ) -> None:
        """``validators``, ``advisers``: the rooms' checks by kind. ``sealing``: where secrets given as values go."""
        self._engine = engine
        self._redis = client
        self._validators = validators
        self._advisers = advisers
        self._sealing = sealing
        self._lock = threading.Lock()
        self._state = EMPTY

    def state(self) -> State:
        """Return the newest state with managers and digests; reads only what changed since the last call."""
        with self._lock, self._engine.connect() as connection:
            self._state = read_state(connection, self._state)
            return self._state

    def current(self) -> ConfigDocument:
        """Return the newest document; the same object until something changes."""
        return self.state().document

    def version(self) -> int:
        """Return the newest version's number, and nothing else is read."""
        with self._engine.connect() as connection:
            return read_head(connection)

    def get(self, kind: str, name: str) -> Stored:
        """Return one resource; :class:`UnknownResourceError`."""
        found = self.state().resources.get((kind, name))
        if found is None:
            raise UnknownResourceError(f"there is no {kind} {name!r}")
        return found

    def apply(
        self,
        resources: Iterable[AnyResource | LoadedResource],
        *,
        author: str,
        manager: Manager,
        prune: bool = False,
        prune_own: bool = False,
        comment: str = "",
        take_over: bool = False,
        dry_run: bool = False,
        expected_version: int | None = None,
        secrets: Sequence[SealedValue] = (),
    ) -> ApplyResult:
        """Write many resources as one version.

        ``prune`` removes what the same manager holds and ``resources`` lack; with ``prune_own`` only what ``author`` was
        the last to write, so that several sources of one manager leave each other alone. ``take_over`` makes resources of another
        manager this one's. ``dry_run`` checks everything and tells the difference, and writes nothing. Raises
        :class:`ConfigError` (all problems), ``ManagerConflictError`` or ``StaleVersionError``.
        """
        loaded = [_loaded(resource) for resource in resources]
        wanted = {item.key: item.resource for item in loaded}
        edit: Edit
        if manager == "adopted":
            edit = adopt_edit(wanted, prune=prune)
        else:
            edit = apply_edit(
                wanted, manager, prune=prune or prune_own, take_over=take_over, expected=expected_version,
                own_versions=self._versions_by(author) if prune_own else None,
            )  # fmt: skip
        return self._commit(
            edit,
            author=author,
            change="apply",
            comment=comment,
            places={item.key: item.where for item in loaded},
            secrets=secrets,
            dry_run=dry_run,
        )

    def put(
        self,
        resource: AnyResource,
        *,
        author: str,
        manager: Manager = "api",
        if_match: str | None = None,
        must_be_new: bool = False,
        comment: str = "",
        secrets: Sequence[SealedValue] = (),
        dry_run: bool = False,
    ) -> ApplyResult:
        """Write one resource. ``if_match`` is the digest it must have now; ``must_be_new`` refuses an existing one."""
        edit = put_edit(resource, manager, if_match=if_match, must_be_new=must_be_new)
        return self._commit(
            edit, author=author, change="put", comment=comment, secrets=secrets, dry_run=dry_run
        )

    def delete(
        self,
        kind: str,
        name: str,
        *,
        author: str,
        manager: Manager = "api",
        if_match: str | None = None,
        comment: str = "",
    ) -> ApplyResult:
        """Remove one resource; refused while another one needs it."""
        edit = delete_edit((kind, name), manager, if_match=if_match)
        return self._commit(edit, author=author, change="delete", comment=comment)

    def rollback(self, version: int, *, author: str, comment: str = "") -> ApplyResult:
        """Make a new version with the content of an old one; keys and revocations are not part of it."""
        with self._engine.connect() as connection:
            target = read_state_at(connection, version)
        text = comment or f"rollback to version {version}"
        return self._commit(rollback_edit(target), author=author, change="rollback", comment=text)

    def history(self, *, before: int | None = None, limit: int = 50) -> list[VersionInfo]:
        """Return versions, newest first; ``before`` is the last number of the page before."""
        query = select(config_versions).order_by(config_versions.c.version.desc()).limit(limit)
        if before is not None:
            query = query.where(config_versions.c.version < before)
        with self._engine.connect() as connection:
            return [VersionInfo(**row._mapping) for row in connection.execute(query)]

    def at(self, version: int) -> tuple[VersionInfo, ConfigDocument]:
        """Return an old version; :class:`UnknownResourceError` when there was none."""
        with self._engine.connect() as connection:
            return read_version(connection, version), read_state_at(connection, version).document

    def diff(self, before: int, after: int) -> list[ResourceDiff]:
        """Return what differs between two versions (0 is the empty one)."""
        with self._engine.connect() as connection:
            for version in (before, after):
                if version:
                    read_version(connection, version)
            return compare(read_bodies(connection, before), read_bodies(connection, after))

    def _versions_by(self, author: str) -> frozenset[int]:
        query = select(config_versions.c.version).where(config_versions.c.author == author[:200])
        with self._engine.connect() as connection:
            return frozenset(connection.scalars(query))

    def _commit(
        self,
        edit: Edit,
        *,
        author: str,
        change: str,
        comment: str,
        places: dict[Key, Where] | None = None,
        secrets: Sequence[SealedValue] = (),
        dry_run: bool = False,
    ) -> ApplyResult:
        """Plan and check against the newest state, then write if it still is the newest; else again.

        The checks may take long (every policy compiled), so they do not hold the database's write lock.
        """
        for _ in range(_ATTEMPTS):
            state = self.state()
            plan = edit(state)
            after = state_after(state, plan)
            findings = check(
                after.document, places=places, validators=self._validators, advisers=self._advisers,
                changed=set(plan.puts),
            )  # fmt: skip
            if findings.problems:
                raise ConfigError(findings.problems)
            result = result_of(state, after, plan, findings.warnings)
            if dry_run or not (plan.puts or plan.removals):
                return replace(result, version=state.version, digest=state.digest, dry_run=dry_run)
            if self._write(state, after, plan, author, change, comment, secrets):
                announce(self._redis, snapshot=after.version)
                return result
        raise UnavailableError(
            "the configuration is being changed by others all the time; try again", retry_after_ms=500
        )

    def _write(
        self,
        state: State,
        after: State,
        plan: Plan,
        author: str,
        change: str,
        comment: str,
        secrets: Sequence[SealedValue],
    ) -> bool:
        """Write the version; ``False`` when another one came first."""
        with write(self._engine) as connection:
            connection.execute(
                update(config_head).values(version=config_head.c.version)
            )  # takes the row's lock
            if read_head(connection) != state.version:
                return False
            self._seal(connection, secrets)
            check_sealed(connection, plan)
            write_rows(connection, after, plan)
            row = VersionInfo(after.version, after.digest, author[:200], change, comment[:2_000], unix_ms())
            connection.execute(insert(config_versions).values(**asdict(row)))
            connection.execute(update(config_head).values(version=after.version))
            write_audit(connection, state, after, plan, author, change)
        return True

    def _seal(self, connection: Connection, secrets: Sequence[SealedValue]) -> None:
        if secrets and self._sealing is None:
            raise UnavailableError("this process cannot seal secrets; give them as ${env:NAME}")
        for name, value in secrets:
            assert self._sealing is not None
            self._sealing.put_in(connection, name, value)


def _loaded(resource: AnyResource | LoadedResource) -> LoadedResource:
    if isinstance(resource, LoadedResource):
        return resource
    return LoadedResource(resource, Where(resource.kind, resource.metadata.name))
