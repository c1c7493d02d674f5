"""A snapshot: one version of the configuration, compiled for the data plane; immutable but for its cache of plans."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from airi.config.document import ConfigDocument
from airi.config.kinds import Tenant
from airi.config.secrets import SecretResolver
from airi.errors import PermissionDeniedError
from airi.keys import KeyRecord, scopes
from airi.keys.roles import PERMISSIONS
from airi.pace import Pace
from airi.patterns import allowed
from gateway.detectors import with_detectors
from gateway.plan import Plan
from gateway.workflows import PREFIX, with_workflows
from policies.engine import PolicyEngine, PolicySet
from policies.limits import LimitTable, Scopes, without_held
from routing.errors import UnknownModelError
from routing.prices import PriceMap
from routing.registry import Route, RoutingTable

_log = logging.getLogger("airi.gateway.snapshot")
_MAX_PLANS = 20_000
_MAX_CHANGED = 64
"""With more policies changed than this, plans are made anew instead of being looked through."""
_ROUTED = ("Provider", "Pool", "Model", "Workflow")
_Plans = dict[tuple[str, str], tuple[KeyRecord, Plan]]
_EVERYTHING = ("*",)


class Snapshot:
    """What a call is served by. Build it off the event loop; reading it costs a dictionary look-up."""

    def __init__(self, document: ConfigDocument, table: RoutingTable, policies: PolicyEngine) -> None:
        self.document = document
        self.version = document.version
        self.digest = document.digest
        self.table = table
        self.policies = policies
        self.limits = LimitTable(document)
        self._tenants = {tenant.metadata.name: tenant for tenant in document.all(Tenant)}
        self._plans: _Plans = {}

    @classmethod
    def build(
        cls,
        document: ConfigDocument,
        resolver: SecretResolver,
        control_socket: Path,
        prices: PriceMap | None = None,
        before: Snapshot | None = None,
    ) -> Snapshot:
        """Compile a document; raise :class:`airi.errors.ConfigError` naming every fault.

        ``before`` is the snapshot that serves meanwhile: what did not change is taken over from it, and the work is done
        in small slices, so that its calls do not wait. Blocking: call it in a thread.
        """
        if before is None or not before.version:
            before = None
        pace = None if before is None else Pace()
        if before is not None and document.same(before.document, *_ROUTED):
            table = before.table
        else:
            served = with_workflows(with_detectors(document, control_socket), control_socket)
            table = RoutingTable.build(served, prices, resolve_secret=resolver.resolve, lenient=True)
            for spec in table.places.values():
                if spec.fault:
                    _log.warning("calls to %s %s fail", spec.kind, spec.name, extra={"error": spec.fault})
        engine = PolicyEngine.compile(document, None if before is None else before.policies, pace)
        snapshot = cls(document, table, engine)
        if before is not None and pace is not None:
            snapshot._plans = snapshot._still_right(before, pace)
        return snapshot

    @classmethod
    def empty(cls) -> Snapshot:
        """Return a snapshot that serves nothing: what a process has before it has read its first."""
        document = ConfigDocument.of([])
        return cls(document, RoutingTable({}, {}), PolicyEngine.compile(document))

    def plan(self, key: KeyRecord, model: str) -> Plan:
        """Return the plan for calls of ``key`` to ``model``; raise 404 or 403 where there is none for it."""
        name = (key.id, model)
        found = self._plans.get(name)
        if found is not None and found[0] is key:
            return found[1]
        plan = self._make_plan(key, model)
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[name] = (key, plan)
        return plan

    def may_call(self, key: KeyRecord, alias: str) -> bool:
        """Return whether tenant, team and key all admit the model."""
        tenant = self._tenants.get(key.tenant)
        if tenant is None or not allowed(tenant.models, alias):
            return False
        team = next((team for team in tenant.teams if team.name == key.team), None)
        if team is not None and not allowed(team.models, alias):
            return False
        return not key.models or allowed(key.models, alias)

    def models_of(self, key: KeyRecord) -> Iterator[Route]:
        """Yield the routes that the key may call, in order of alias."""
        for alias in sorted(self.table.routes):
            if self.may_call(key, alias):
                yield self.table.routes[alias]

    def _still_right(self, before: Snapshot, pace: Pace) -> _Plans:
        """Return the plans of ``before`` that would be made alike now: same routes, same tenant, same policies."""
        changed = self.policies.changed_since(before.policies)
        if self.table is not before.table or len(changed) > _MAX_CHANGED:
            return {}
        same = {name for name, tenant in self._tenants.items() if before._tenants.get(name) is tenant}
        wide = [policy for policy in changed if policy.tenants is None]
        for policy in changed:
            same -= policy.tenants or frozenset()
        plans: _Plans = {}
        for name, (key, plan) in before._plans.copy().items():
            call = (key.tenant, key.team or "", key.id, name[1])
            if key.tenant in same and not any(policy.covers(*call) for policy in wide):
                plans[name] = (key, plan)
            pace()
        return plans

    def _make_plan(self, key: KeyRecord, model: str) -> Plan:
        tenant = self._tenants.get(key.tenant)
        if tenant is None:
            raise PermissionDeniedError(
                f"The tenant '{key.tenant}' of this key is not in the configuration that is in force.",
                code="tenant_not_found",
            )
        if "models.call" not in PERMISSIONS[key.role]:
            raise PermissionDeniedError(
                f"The role '{key.role}' of this key does not call models.", code="role_not_allowed"
            )
        route = self.table.resolve(model, visible=lambda alias: self.may_call(key, alias))
        scopes.check(key, model=model)
        if not self.may_call(key, model):
            raise UnknownModelError(model)
        policies = self.policies.select(key.tenant, key.team or "", key.id, model)
        reroutes = self._reroutes(policies)
        prices = [r.price for r in (route, *reroutes.values())]
        known = [price for price in prices if price is not None]
        return Plan(
            alias=route.alias,
            route=route,
            reroutes=reroutes,
            policies=policies,
            scopes=self._scopes(key, route.alias),
            weight=tenant.weight,
            input_price=max((price.worst_input for price in known), default=0),
            output_price=max((price.worst_output for price in known), default=0),
            priced=len(known) == len(prices),
            max_output_tokens=route.contract.max_output_tokens,
            region=route.targets[0].region,
            keep_content=tenant.record.content == "masked",
        )

    def _scopes(self, key: KeyRecord, alias: str) -> Scopes:
        scopes_ = self.limits.scopes_for(key.tenant, key.team, key, None, alias)
        return without_held(scopes_) if alias.startswith(PREFIX) else scopes_

    def _reroutes(self, policies: PolicySet) -> dict[str, Route]:
        return {name: self.table.routes[name] for name in policies.route_targets if name in self.table.routes}
