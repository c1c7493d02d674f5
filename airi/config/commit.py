"""Carrying a plan out: the state after it, its rows, its entry in the audit trail, and what the caller is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, insert, select

from airi import audit
from airi.config.diff import ResourceDiff, compare
from airi.config.document import content_digest
from airi.config.edits import Plan
from airi.config.positions import Where
from airi.config.schema import config_changes, config_resources
from airi.config.secrets import references as secret_references
from airi.config.secrets import sealed_name
from airi.config.state import Key, Manager, State, Stored, body_of, encode_body
from airi.errors import ConfigError
from airi.vault import vault

_NAMED_IN_AUDIT = 50


@dataclass(frozen=True, slots=True)
class ApplyResult:
    """What a write did. ``version`` is the one that serves afterwards; unchanged when nothing differed.

    ``shadowed``: adopted resources that a file or the API defines otherwise; ``kept``: adopted ones that are gone
    but still named by others.
    """

    version: int
    digest: str
    created: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0
    shadowed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    dry_run: bool = False
    diff: list[ResourceDiff] = field(default_factory=list)


def state_after(state: State, plan: Plan) -> State:
    """Return the state that ``plan`` makes of ``state``."""
    resources = {key: stored for key, stored in state.resources.items() if key not in plan.removals}
    version = state.version + 1
    for key, (resource, manager) in plan.puts.items():
        resources[key] = Stored(resource, manager, version, encode_body(resource)[1])
    return State(
        version, content_digest({key: stored.digest for key, stored in resources.items()}), resources
    )


def result_of(state: State, after: State, plan: Plan, warnings: Sequence[str]) -> ApplyResult:
    """Tell what the write does, with the difference of each resource that it touches."""

    def names(keys: Iterable[Key]) -> tuple[str, ...]:
        return tuple(f"{kind}/{name}" for kind, name in sorted(keys))

    touched = {*plan.puts, *plan.removals}
    return ApplyResult(
        after.version,
        after.digest,
        created=names(key for key in plan.puts if key not in state.resources),
        changed=names(key for key in plan.puts if key in state.resources),
        removed=names(plan.removals),
        unchanged=plan.unchanged,
        shadowed=names(plan.shadowed),
        kept=names(plan.kept),
        warnings=tuple(warnings),
        diff=compare(_bodies(state, touched), _bodies(after, touched)),
    )


def _bodies(state: State, keys: set[Key]) -> dict[Key, dict[str, object]]:
    return {key: body_of(state.resources[key].resource) for key in keys if key in state.resources}


def write_rows(connection: Connection, after: State, plan: Plan) -> None:
    """Write what serves now and what this version changed."""
    written = []
    for key, (resource, manager) in plan.puts.items():
        body, digest = encode_body(resource)
        written.append({**_row(key, manager, after.version), "digest": digest, "body": body})
    removed = [
        {**_row(key, manager, after.version), "digest": None, "body": None}
        for key, manager in plan.removals.items()
    ]
    columns = config_resources.c
    for key in (*plan.puts, *plan.removals):
        connection.execute(delete(config_resources).where(columns.kind == key[0], columns.name == key[1]))
    if written:
        connection.execute(insert(config_resources), written)
    connection.execute(insert(config_changes), written + removed)


def _row(key: Key, manager: Manager, version: int) -> dict[str, object]:
    return {"kind": key[0], "name": key[1], "manager": manager, "version": version}


def check_sealed(connection: Connection, plan: Plan) -> None:
    """A sealed reference must lead to a value of this very place: it cannot be copied to another."""
    problems = []
    for key, (resource, _) in plan.puts.items():
        for path, reference in secret_references(resource):
            name = sealed_name(reference, f"{key[0]}|{key[1]}|{path}")
            if (
                name is not None
                and connection.scalar(select(vault.c.name).where(vault.c.name == name)) is None
            ):
                problems.append(
                    f"{Where(*key)(path)}: this sealed value belongs to another place; give the value anew"
                )
    if problems:
        raise ConfigError(problems)


def write_audit(
    connection: Connection, state: State, after: State, plan: Plan, author: str, change: str
) -> None:
    """Add the write to the audit trail: digests and names, never content."""

    def some(keys: Iterable[Key]) -> list[str]:
        return [f"{kind}/{name}" for kind, name in sorted(keys)[:_NAMED_IN_AUDIT]]

    detail = {
        "from": state.digest,
        "to": after.digest,
        "written": some(plan.puts),
        "removed": some(plan.removals),
        "count": len(plan.puts) + len(plan.removals),
    }
    audit.append(connection, audit.Note(author, f"config.{change}", f"config/{after.version}", detail=detail))
