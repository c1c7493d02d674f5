"""What a write means for a given state: pure functions from a state to the puts and removals that it takes.

Here are the rules of managers: who may change what, what gives way, and what pruning removes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from airi.config.errors import ManagerConflictError, StaleVersionError, UnknownResourceError
from airi.config.kinds import AnyResource, Tenant, Tool
from airi.config.secrets import references as secret_references
from airi.config.state import Key, Manager, State, Stored, encode_body
from airi.config.validation import references
from airi.errors import ConfigError

SealedValue = tuple[str, bytes]
"""A name in the vault and the value to put there."""


@dataclass(slots=True)
class Plan:
    """What a write will do."""

    puts: dict[Key, tuple[AnyResource, Manager]] = field(default_factory=dict)
    removals: dict[Key, Manager] = field(default_factory=dict)
    unchanged: int = 0
    shadowed: set[Key] = field(default_factory=set)
    kept: set[Key] = field(default_factory=set)


Edit = Callable[[State], Plan]
"""Called with the newest state, again when another write came first; must not have effects."""


def apply_edit(
    wanted: Mapping[Key, AnyResource],
    manager: Manager,
    *,
    prune: bool,
    take_over: bool = False,
    expected: int | None = None,
    own_versions: Set[int] | None = None,
) -> Edit:
    """Write ``wanted`` for ``manager``; all conflicts are told at once.

    ``own_versions`` narrows what pruning removes to the resources that one of these versions wrote last.
    """

    def edit(state: State) -> Plan:
        if expected is not None and state.version != expected:
            raise StaleVersionError(
                f"the configuration is at version {state.version}, not {expected}: look at the difference again"
            )
        plan = Plan()
        conflicts = []
        for key, resource in wanted.items():
            known = state.resources.get(key)
            if known is not None and _foreign(known, manager) and not take_over:
                conflicts.append(_conflict(known))
            elif known is not None and known.manager == manager and known.digest == encode_body(resource)[1]:
                plan.unchanged += 1
            else:
                plan.puts[key] = (resource, manager)
        if conflicts:
            raise ManagerConflictError("\n".join(conflicts))
        if prune:
            _prune(state, wanted, manager, plan, own_versions)
        if manager == "api":
            _refuse_through_api(plan)
        return plan

    return edit


def adopt_edit(wanted: Mapping[Key, AnyResource], *, prune: bool) -> Edit:
    """Take in what discovery found; what files or the API define wins, what they need stays."""

    def edit(state: State) -> Plan:
        plan = Plan()
        for key, resource in wanted.items():
            known = state.resources.get(key)
            if known is not None and known.manager != "adopted":
                plan.shadowed.add(key)
            elif known is not None and known.digest == encode_body(resource)[1]:
                plan.unchanged += 1
            else:
                plan.puts[key] = (resource, "adopted")
        if prune:
            _prune(state, wanted, "adopted", plan)
            _keep_needed(state, plan)
        return plan

    return edit


def put_edit(resource: AnyResource, manager: Manager, *, if_match: str | None, must_be_new: bool) -> Edit:
    """Write one resource under its preconditions."""
    key = (resource.kind, resource.metadata.name)
    inner = apply_edit({key: resource}, manager, prune=False)

    def edit(state: State) -> Plan:
        known = state.resources.get(key)
        if must_be_new and known is not None and known.manager != "adopted":
            raise StaleVersionError(f"{key[0]} {key[1]!r} exists already")
        _require(known, key, if_match)
        return inner(state)

    return edit


def delete_edit(key: Key, manager: Manager, *, if_match: str | None) -> Edit:
    """Remove one resource under its preconditions."""

    def edit(state: State) -> Plan:
        known = state.resources.get(key)
        if known is None:
            raise UnknownResourceError(f"there is no {key[0]} {key[1]!r}")
        _require(known, key, if_match)
        if known.manager == "adopted":
            raise ManagerConflictError(
                f"{key[0]} {key[1]!r} was found by discovery and would come back; define it yourself to replace it"
            )
        if _foreign(known, manager):
            raise ManagerConflictError(_conflict(known))
        return Plan(removals={key: known.manager})

    return edit


def rollback_edit(target: State) -> Edit:
    """Make the content that of ``target``, managers included.

    What is adopted now stays: it says what runs on this machine now (ports, engines), which nobody decided and no
    rollback brings back.
    """

    def edit(state: State) -> Plan:
        plan = Plan()
        for key, stored in target.resources.items():
            known = state.resources.get(key)
            found = known is not None and known.manager == stored.manager == "adopted"
            if found or (
                known is not None and (known.digest, known.manager) == (stored.digest, stored.manager)
            ):
                plan.unchanged += 1
            else:
                plan.puts[key] = (stored.resource, stored.manager)
        plan.removals = {
            key: known.manager
            for key, known in state.resources.items()
            if key not in target.resources and known.manager != "adopted"
        }
        return plan

    return edit


def _foreign(known: Stored, manager: Manager) -> bool:
    return known.manager not in (manager, "adopted")


def _conflict(known: Stored) -> str:
    kind, name = known.key
    how = "change its file and run `airi apply`" if known.manager == "file" else "change it there"
    return (
        f"{kind} {name!r} is managed by {known.manager!r}: {how}, or take it over (`airi apply --take-over`)"
    )


def _require(known: Stored | None, key: Key, if_match: str | None) -> None:
    if if_match is None or (if_match == "*" and known is not None):
        return
    if known is None or known.digest != if_match:
        raise StaleVersionError(f"{key[0]} {key[1]!r} changed since it was read; read it again")


def _prune(
    state: State,
    wanted: Mapping[Key, AnyResource],
    manager: Manager,
    plan: Plan,
    versions: Set[int] | None = None,
) -> None:
    for key, known in state.resources.items():
        mine = known.manager == manager and (versions is None or known.version in versions)
        if mine and key not in wanted:
            plan.removals[key] = manager


def _keep_needed(state: State, plan: Plan) -> None:
    """An engine that is away for a while must not make the configuration invalid that names it."""
    staying = [stored.resource for key, stored in state.resources.items() if key not in plan.removals]
    staying += [resource for resource, _ in plan.puts.values()]
    while staying:
        needed = {(kind, name) for resource in staying for kind, name, _ in references(resource)}
        back = needed & set(plan.removals)
        staying = [state.resources[key].resource for key in back]
        for key in back:
            del plan.removals[key]
            plan.kept.add(key)


def _refuse_through_api(plan: Plan) -> None:
    """What would let a caller of the API reach into the machine: its private network and its files."""
    problems = []
    for (kind, name), (resource, _) in plan.puts.items():
        if isinstance(resource, Tool) and resource.http is not None and resource.http.allow_private:
            problems.append(f"{kind}/{name}: http.allow_private: only a file may allow private addresses")
        if isinstance(resource, Tenant) and resource.identity is not None and resource.identity.jwks_file:
            problems.append(f"{kind}/{name}: identity.jwks_file: only a file may name files; give a jwks_url")
        for path, reference in secret_references(resource):
            if reference.startswith("${file:"):
                problems.append(
                    f"{kind}/{name}: {path}: only a file may name files; give the value, it is sealed"
                )
    if problems:
        raise ConfigError(problems)
