"""Backup and restore of all state that one home holds.

A backup is one ``.tar.gz`` (mode 0600; it holds the keys, so guard it as one): consistent copies of the SQLite
databases (or a logical dump of the database that AIRI_DATABASE_URL names), taken while everything runs, the day files of
the record, the generated keys, and a manifest with the SHA-256 of each. Redis is not in it: its counters are rebuilt from the ledger, so money that was settled is first moved
from Redis' stream into the ledger. The runs database is copied before AIRI's own, so that no step is paid for in
the backup without standing in its ledger.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

import airi
from airi.clock import unix_ms
from airi.dump import dump, load
from airi.errors import ConflictError, InvalidRequestError
from airi.redis import connect
from airi.settings import Settings
from airi.up.databases import databases, migrate_all

MANIFEST = "manifest.json"
_FORMAT = 1
_DATABASES = ("runs.db", "airi.db")
_DUMP = "database.dump"
_KEYS = ("secret.key", "admin.key", "dev.key", "adopted.yaml")
_MANIFEST_LIMIT = 1 << 20


class BackupError(InvalidRequestError):
    """The backup cannot be taken or read; the message says why."""

    code = "backup_failed"


class HomeInUseError(ConflictError):
    """A restore needs an empty home."""

    code = "home_in_use"


def backup(settings: Settings, target: Path, *, records: bool = True) -> dict[str, Any]:
    """Write a backup of ``settings.home`` to ``target`` and return its manifest. Works while AIRI runs."""
    if settings.database_url is None and not (settings.home / "airi.db").exists():
        raise BackupError(f"{settings.home} holds no AIRI state; set AIRI_HOME")
    if target.exists():
        raise BackupError(f"{target} exists already")
    settled = _settle(settings)
    with tempfile.TemporaryDirectory(prefix="airi-backup-", dir=target.parent) as folder:
        staging = Path(folder)
        names = list(_copies(settings, staging, records=records))
        manifest: dict[str, Any] = {
            "format": _FORMAT,
            "airi": airi.__version__,
            "created_at_ms": unix_ms(),
            "ledger_entries_moved": settled,
            # From the environment it is not in here, and what is sealed in here opens with nothing else.
            "secrets_sealed_with": "AIRI_SECRET_KEY" if settings.secret_key is not None else "secret.key",
            "files": {name: _sha256(staging / name) for name in names},
        }
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=2))
        whole = staging / "whole.tar.gz"
        descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with (
            os.fdopen(descriptor, "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) as archive,
        ):
            for name in (MANIFEST, *names):
                archive.add(staging / name, arcname=name)
            archive.close()
            file.flush()
            os.fsync(file.fileno())
        whole.rename(target)
    return manifest


def restore(settings: Settings, source: Path) -> dict[str, Any]:
    """Fill an empty home from ``source`` and return the manifest; nothing is put in place unless all of it is sound.

    A backup of a database server goes into the new database that AIRI_DATABASE_URL names. Raises :class:`HomeInUseError` when the home holds state, :class:`BackupError` when the file is not what it says.
    """
    home = settings.home
    if home.exists() and any(home.iterdir()):
        raise HomeInUseError(f"{home} is not empty: restore into another AIRI_HOME, or move it away")
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="airi-restore-", dir=home.parent) as folder:
        staging = Path(folder) / "home"
        staging.mkdir(mode=0o700)
        try:
            with tarfile.open(source) as archive:
                manifest = _unpack(archive, staging)
        except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
            raise BackupError(f"{source} is not a backup of AIRI, or is damaged: {error}") from error
        _load_dump(settings, staging / _DUMP)
        if home.exists():
            home.rmdir()
        staging.rename(home)
    return manifest


def _load_dump(settings: Settings, path: Path) -> None:
    """Fill the database server from the backup's dump, when it has one."""
    if path.exists() != (settings.database_url is not None):
        wanted = "set AIRI_DATABASE_URL to a new database" if path.exists() else "unset AIRI_DATABASE_URL"
        raise BackupError(f"{wanted}: this backup was made {'with' if path.exists() else 'without'} one")
    if path.exists():
        migrate_all(settings)
        with databases(settings) as (main, _):
            load(main, path)
        path.unlink()


def _settle(settings: Settings) -> int | None:
    """Write down open reservations and move settled money from Redis into the ledger; ``None`` where no Redis was."""
    from policies.ledger.consumer import LedgerConsumer
    from policies.reaper import Reaper

    with databases(settings) as (main, _), connect(settings.effective_redis_url) as client:
        try:
            client.ping()
        except redis.RedisError:
            if (settings.home / "redis").exists():
                raise BackupError(
                    "Redis does not answer, and may hold settled money that is not in the ledger yet: start AIRI, "
                    "and take the backup while it runs"
                ) from None
            return None
        Reaper(main, client).run_once()
        return LedgerConsumer(main, client).run_until_empty()


def _copies(settings: Settings, staging: Path, *, records: bool) -> Iterator[str]:
    """Copy what a backup holds and yield the names, in the order of copying."""
    if settings.database_url is not None:
        with databases(settings) as (main, _):
            dump(main, staging / _DUMP)
        yield _DUMP
    for name in _DATABASES if settings.database_url is None else ():
        if (settings.home / name).exists():
            yield _copy_database(settings.home / name, staging, name)
    for name in _KEYS:
        if (settings.home / name).exists():
            shutil.copyfile(settings.home / name, staging / name)
            yield name
    for path in sorted(settings.records.glob("*.db")) if records else ():
        (staging / "records").mkdir(exist_ok=True)
        yield _copy_database(path, staging, f"records/{path.name}")


def _copy_database(source: Path, staging: Path, name: str) -> str:
    """Copy a database as of one moment, with what its write-ahead log holds."""
    reading = sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)
    writing = sqlite3.connect(staging / name)
    try:
        reading.backup(writing)
        writing.execute("PRAGMA journal_mode=DELETE")
    finally:
        reading.close()
        writing.close()
    return name


def _unpack(archive: tarfile.TarFile, staging: Path) -> dict[str, Any]:
    """Put the files that the manifest names into ``staging``, each checked; anything else is refused."""
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isfile() or first.size > _MANIFEST_LIMIT:
        raise ValueError("it does not begin with a manifest")
    opened = archive.extractfile(first)
    assert opened is not None
    manifest: dict[str, Any] = json.loads(opened.read())
    if manifest["format"] != _FORMAT:
        raise ValueError(f"format {manifest['format']} is not known to this release")
    wanted: dict[str, str] = dict(manifest["files"])
    while (member := archive.next()) is not None:
        digest = wanted.pop(member.name, None)
        if digest is None or not member.isfile() or not _known(member.name):
            raise ValueError(f"{member.name!r} does not belong into a backup")
        path = staging / member.name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            shutil.copyfileobj(content, file)
        if _sha256(path) != digest:
            raise ValueError(f"{member.name!r} is not what was saved")
    if wanted:
        raise ValueError(f"{', '.join(wanted)} is missing")
    return manifest


def _known(name: str) -> bool:
    path = Path(name)
    return name in (*_DATABASES, *_KEYS, _DUMP) or (path.parent == Path("records") and path.suffix == ".db")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
