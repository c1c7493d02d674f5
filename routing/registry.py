"""The registry: which aliases exist, which version serves each, and where that version can be reached.

A table is immutable and belongs to one configuration snapshot; a call keeps the :class:`Route` it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from airi.config.document import ConfigDocument
from airi.config.kinds import Model, ModelContract, Pool, Provider, Retries, Target
from airi.errors import AiriError, ConfigError
from airi.secrets import Secret
from routing.contract import Needs, droppable, dropped_fields, refusal, unmet
from routing.errors import UnknownModelError
from routing.prices import PriceMap, TokenPrice, configured, dearest
from routing.specs import (
    PlaceSpec,
    SecretResolver,
    check_reachable,
    pool_spec,
    provider_spec,
    resolve_plain_reference,
)

_SUGGEST_FROM = 200
"""Names compared for "did you mean": comparing all of thousands would cost milliseconds a wrong name."""


@dataclass(frozen=True, slots=True)
class RouteTarget:
    """One place that can serve a version, and what the model is called there."""

    place: str
    kind: str
    model: str
    weight: int
    price: TokenPrice | None
    region: str
    simulated: bool
    dialect: str
    responses: bool = False
    """Whether a call of the Responses API is sent there in its own form."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """What an alias means now. ``price`` is at least every reachable target's price; ``None`` if one has none."""

    alias: str
    version: str
    targets: tuple[RouteTarget, ...]
    contract: ModelContract
    retries: Retries
    drop_params: bool
    fallback_names: tuple[str, ...]
    price: TokenPrice | None
    simulated: bool
    seed: int
    fallbacks: tuple[Route, ...] = ()
    label: str = field(init=False)
    """``alias@version``, as in the header ``x-airi-model``."""
    looks_at_prompts: bool = field(init=False)
    """Whether a target has replicas to choose among, by what they may hold of a prompt in their caches."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", f"{self.alias}@{self.version}")
        object.__setattr__(self, "looks_at_prompts", self._has_choice())

    def _has_choice(self) -> bool:
        return any(target.kind == "pool" for target in self.targets) or any(
            fallback.looks_at_prompts for fallback in self.fallbacks
        )

    def check(self, needs: Needs) -> tuple[str, ...]:
        """Return the request's fields to leave out (only with ``drop_params``); raise the 400 that names what is not met."""
        missing = unmet(self.contract, needs)
        if not missing:
            return ()
        if self.drop_params and droppable(missing):
            return dropped_fields(missing)
        raise refusal(self.alias, [need for need in missing if not droppable([need])] or missing)

    @property
    def speaks_responses(self) -> bool:
        """Whether any target of the route itself takes calls of the Responses API in their own form."""
        return any(target.responses for target in self.targets)

    def of_responses_alone(self) -> Route | None:
        """Return the route without the targets (and fallbacks) that speak chat completions alone; ``None`` if none is left."""
        targets = tuple(target for target in self.targets if target.responses)
        fallbacks = tuple(
            left for fallback in self.fallbacks if (left := fallback.of_responses_alone()) is not None
        )
        if not targets:
            return replace(fallbacks[0], fallbacks=fallbacks[1:]) if fallbacks else None
        return replace(self, targets=targets, fallbacks=fallbacks)

    def usable_fallbacks(self, needs: Needs, prompt_tokens: int) -> Iterator[Route]:
        """Yield the fallbacks whose contract meets ``needs``; nothing is dropped to fit a fallback.

        ``prompt_tokens`` is an estimate: good enough to pass over a fallback, not to refuse a call, for which the upstream counts.
        """
        for route in self.fallbacks:
            window = route.contract.context_window
            if not unmet(route.contract, needs) and (window is None or prompt_tokens <= window):
                yield route


class RoutingTable:
    """Aliases to routes, and the places they name."""

    def __init__(self, routes: dict[str, Route], places: dict[str, PlaceSpec], digest: str = "") -> None:
        self.routes = routes
        self.places = places
        self.digest = digest

    @classmethod
    def build(
        cls,
        document: ConfigDocument,
        price_map: PriceMap | None = None,
        *,
        resolve_secret: SecretResolver = resolve_plain_reference,
        lenient: bool = False,
    ) -> RoutingTable:
        """Make the table of a document; raise :class:`~airi.errors.ConfigError` naming every fault.

        ``price_map`` defaults to the map of the installed litellm, read once here and let go. With ``lenient`` a place whose
        secret or TLS file is not on this machine fails its own calls (:attr:`PlaceSpec.fault`) and nobody else's.
        """
        problems: list[str] = []
        places = _places(document, resolve_secret, problems, lenient)
        prices = PriceMap.load() if price_map is None else price_map
        routes: dict[str, Route] = {}
        for model in document.all(Model):
            route = _route(model, places, prices, problems)
            if route is not None:
                routes[route.alias] = route
        linked = {alias: _with_fallbacks(route, routes, problems) for alias, route in routes.items()}
        if problems:
            raise ConfigError(problems)
        return cls(
            linked, {key: place for key, place in places.items() if place is not None}, document.digest
        )

    def resolve(self, alias: str, visible: Callable[[str], bool] | None = None) -> Route:
        """Return the route of ``alias``; raise :class:`UnknownModelError`, suggesting only what is ``visible``."""
        route = self.routes.get(alias)
        if route is None:
            raise UnknownModelError(alias[:128], self._suggest(alias, visible))
        return route

    def _suggest(self, alias: str, visible: Callable[[str], bool] | None) -> str | None:
        """Return the visible alias nearest to a mistyped one."""
        if not 0 < len(alias) <= 128:
            return None
        head = alias[0].lower()
        names = [name for name in self.routes if abs(len(name) - len(alias)) <= max(3, len(alias) // 2)]
        names.sort(key=lambda name: name[0].lower() != head)
        shown = [name for name in names[: 4 * _SUGGEST_FROM] if visible is None or visible(name)][
            :_SUGGEST_FROM
        ]
        close = get_close_matches(alias, shown, n=1, cutoff=0.6)
        return close[0] if close else None


def _places(
    document: ConfigDocument, resolve: SecretResolver, problems: list[str], lenient: bool
) -> dict[str, PlaceSpec | None]:
    """Describe every pool and provider under ``pool:NAME`` and ``provider:NAME``; ``None`` where one is faulty."""
    places: dict[str, PlaceSpec | None] = {}
    resources: list[Pool | Provider] = [*document.all(Pool), *document.all(Provider)]
    for resource in resources:
        name = f"{resource.kind}/{resource.metadata.name}"
        key = f"{resource.kind.lower()}:{resource.metadata.name}"
        try:
            places[key] = _lenient_place(resource, resolve) if lenient else _place(resource, resolve)
        except (ValueError, AiriError) as error:
            places[key] = None
            problems.append(f"{name}: {str(error).removeprefix(f'{name}: ')}")
    return places


def _place(resource: Pool | Provider, resolve: SecretResolver) -> PlaceSpec:
    spec = pool_spec(resource, resolve) if isinstance(resource, Pool) else provider_spec(resource, resolve)
    check_reachable(spec)
    return spec


def _lenient_place(resource: Pool | Provider, resolve: SecretResolver) -> PlaceSpec:
    """Describe a place; what this machine lacks for it becomes its ``fault``, and no secret is kept then."""
    faults: list[str] = []

    def ask(reference: str, where: str) -> Secret:
        try:
            return resolve(reference, where)
        except (ValueError, AiriError) as error:
            faults.append(str(error))
            return Secret("")

    spec = pool_spec(resource, ask) if isinstance(resource, Pool) else provider_spec(resource, ask)
    try:
        check_reachable(spec)
    except (ValueError, AiriError) as error:
        faults.append(str(error))
    if not faults:
        return spec
    return replace(spec, fault="; ".join(faults), headers=(), api_key=None, aws=None)


def _route(
    model: Model, places: dict[str, PlaceSpec | None], prices: PriceMap, problems: list[str]
) -> Route | None:
    """Make the route of one alias without its fallbacks."""
    name, version = model.metadata.name, model.active_version
    targets = []
    for target in version.targets:
        key = f"pool:{target.pool}" if target.pool else f"provider:{target.provider}"
        place = places.get(key)
        if place is not None:
            targets.append(_target(target, key, place, model, prices))
        elif key not in places:
            kind, place_name = key.split(":", 1)
            problems.append(
                f"Model/{name}: version {version.name!r} names {kind} {place_name!r}, which does not exist"
            )
    if not targets:
        return None
    return Route(
        alias=name,
        version=version.name,
        targets=tuple(targets),
        contract=model.contract,
        retries=model.retries,
        drop_params=model.drop_params,
        fallback_names=tuple(model.fallbacks),
        price=dearest([target.price for target in targets]),
        simulated=all(target.simulated for target in targets),
        seed=hash((name, version.name, tuple(target.model for target in targets))),
    )


def _target(target: Target, key: str, place: PlaceSpec, model: Model, prices: PriceMap) -> RouteTarget:
    """Price one target: its own price, then its model's, then the price map's, else none."""
    if target.price is not None:
        price: TokenPrice | None = configured(target.price, "target")
    elif model.price is not None:
        price = configured(model.price, "model")
    else:
        price = prices.price(target.model, place.dialect)
    return RouteTarget(
        place=key,
        kind=place.kind,
        model=target.model,
        weight=target.weight,
        price=price,
        region=place.region,
        simulated=place.simulated,
        dialect=place.dialect,
        responses=place.responses,
    )


def _with_fallbacks(route: Route, routes: dict[str, Route], problems: list[str]) -> Route:
    """Attach the direct fallbacks (theirs are not followed) and take them into the dearest price."""
    if not route.fallback_names:
        return route
    fallbacks = []
    for name in route.fallback_names:
        if name not in routes:
            problems.append(f"Model/{route.alias}: fallback {name!r} does not exist")
        elif name != route.alias:
            fallbacks.append(routes[name])
    everything = [route.price, *(fallback.price for fallback in fallbacks)]
    return replace(route, fallbacks=tuple(fallbacks), price=dearest(everything))
