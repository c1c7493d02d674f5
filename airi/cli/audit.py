"""``airi audit verify``: whether the trail of administrative writes is whole."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from airi.cli.output import show
from airi.cli.runner import NoError, Parser, command, group
from airi.settings import Settings

_ANCHOR = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{64})")


def _anchor(text: str) -> tuple[int, str]:
    found = _ANCHOR.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no SEQ:DIGEST as an earlier `airi audit verify` has printed"
        )
    return int(found[1]), found[2]


def _verify(arguments: argparse.Namespace) -> int:
    from sqlalchemy import inspect
    from sqlalchemy.exc import OperationalError

    from airi import audit
    from airi.up.databases import databases

    settings = Settings.from_environment()
    if settings.database_url is None and not settings.home.exists():  # opening would make it
        raise NoError(f"{settings.home} does not exist (AIRI_HOME says which home)")
    with databases(settings) as (main, _):
        try:
            there = inspect(main).has_table(audit.head.name)
        except OperationalError as error:
            raise NoError("AIRI_DATABASE_URL does not answer") from error
        if not there:
            raise NoError("this database has no audit trail yet: start AIRI on it first (airi up)")
        report = audit.verify(main, arguments.anchor)

    def text() -> str:
        if not report.ok:
            return f"NO  {report.problem}\n{report.entries} entries before it hold"
        return (
            f"{report.entries} entries, the chain holds; its head, to note elsewhere and give as --anchor:\n"
            f"{report.entries}:{report.head}"
        )

    show(arguments, {"ok": report.ok, **asdict(report)}, text)
    return 0 if report.ok else 1


def _parser() -> Parser:
    summary = (
        "Walk the audit trail's hash chain in the database: no entry was changed, left out or cut off. Whoever can write to "
        "the database could make a new chain; a head that was noted elsewhere shows that too."
    )
    verify = command("audit verify", summary, "airi audit verify --output json", _verify)
    verify.add_argument(
        "--anchor",
        type=_anchor,
        metavar="SEQ:DIGEST",
        help="an earlier head, which must still be in the chain",
    )
    return group("audit", summary, [verify])


PARSERS = {"audit": _parser}
