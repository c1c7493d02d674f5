"""``airi ledger verify``, ``airi migrate``, ``airi backup``, ``airi restore``: commands on the databases themselves."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from airi.cli.output import show, usd
from airi.cli.runner import NoError, Parser, command, group
from airi.settings import Settings


def _verify(arguments: argparse.Namespace) -> int:
    import msgspec
    import redis

    from airi.redis import connect
    from airi.up.databases import databases
    from policies.ledger.verify import verify

    settings = Settings.from_environment()
    with databases(settings) as (main, _), connect(settings.effective_redis_url, timeout_s=30) as client:
        try:
            report = verify(main, client)
        except redis.ConnectionError as error:
            raise NoError(
                "Redis does not answer: the ledger is compared while AIRI runs (airi up)"
            ) from error
    data = {**msgspec.to_builtins(report), "balanced": report.balanced}

    def text() -> str:
        lines = [
            f"{report.tenants} tenants, {report.counters} counters, {report.open_reservations} open reservations, "
            f"{report.in_stream} entries on their way into the ledger",
            *(f"  {cause:<8} {usd(amount)}" for cause, amount in sorted(report.usd_by_cause.items())),
            f"  beyond what was sent and promised: {usd(report.excess_usd_micros)}",
        ]
        lines += [
            f"NO  {d.tenant} {d.counter}: {d.what} is {d.found}, the books say {d.books}"
            for d in report.differences
        ]
        if report.unreadable:
            lines.append(f"NO  {report.unreadable} entries cannot be read by this release")
        return "\n".join(
            [*lines, "balanced to the micro-dollar" if report.balanced else "the books do not balance"]
        )

    show(arguments, data, text)
    return 0 if report.balanced else 1


def _ledger_parser() -> Parser:
    summary = "Compare Redis' counters with the ledger and the open reservations, to the micro-dollar, while calls go on."
    return group("ledger", summary, [command("ledger verify", summary, "airi ledger verify", _verify)])


def _migrate(arguments: argparse.Namespace) -> int:
    from airi.up.databases import migrate_all

    applied = migrate_all(Settings.from_environment())
    show(
        arguments, {"applied": applied}, lambda: f"{applied} migrations applied" if applied else "up to date"
    )
    return 0


def _migrate_parser() -> Parser:
    return command(
        "migrate",
        "Bring the databases up to date. Processes do this by themselves at their start; run it first where many "
        "machines share one database. Migrations only go forward and suit the previous release's processes.",
        "AIRI_DATABASE_URL=postgresql://airi@db/airi airi migrate",
        _migrate,
    )


def _backup(arguments: argparse.Namespace) -> int:
    from airi.up.backup import backup

    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    target = (arguments.file or Path(f"airi-backup-{moment}.tar.gz")).absolute()
    manifest = backup(Settings.from_environment(), target, records=not arguments.without_records)
    show(
        arguments,
        {"file": str(target), **manifest},
        lambda: (
            f"{target} ({target.stat().st_size:,} bytes, {len(manifest['files'])} files). "
            + (
                "AIRI_SECRET_KEY is not in it: keep it too, or the secrets in it cannot be opened."
                if manifest["secrets_sealed_with"] != "secret.key"
                else "It holds the keys: guard it."
            )
        ),
    )
    return 0


def _backup_parser() -> Parser:
    parser = command(
        "backup",
        "Save all state of AIRI_HOME into one file, while everything runs: configuration, keys, ledger, runs, records.",
        "airi backup --file airi.tar.gz",
        _backup,
    )
    parser.add_argument("--file", type=Path, help="where to write it (default: airi-backup-TIME.tar.gz here)")
    parser.add_argument("--without-records", action="store_true", help="leave out the records of calls")
    return parser


def _restore(arguments: argparse.Namespace) -> int:
    from airi.up.backup import restore

    settings = Settings.from_environment()
    manifest = restore(settings, arguments.file)
    show(
        arguments,
        {"home": str(settings.home), **manifest},
        lambda: f"{len(manifest['files'])} files are back in {settings.home}; start it with `airi up`",
    )
    return 0


def _restore_parser() -> Parser:
    parser = command(
        "restore",
        "Put a backup into an empty AIRI_HOME. Counters are rebuilt from the ledger at the next start.",
        "AIRI_HOME=./restored airi restore airi.tar.gz",
        _restore,
    )
    parser.add_argument("file", type=Path, help="what `airi backup` wrote")
    return parser


PARSERS = {
    "ledger": _ledger_parser,
    "migrate": _migrate_parser,
    "backup": _backup_parser,
    "restore": _restore_parser,
}
