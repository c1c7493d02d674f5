"""What AIRI finds and serves without being told: simulated models always, local engines, hosted providers.

The result is plain resources in ``AIRI_HOME/adopted.yaml``, which the control plane applies with the manager
``adopted``: a resource of the same name from a file or the API wins. Keys stand in it only as ``${env:NAME}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airi.up.engines import Engine
from airi.up.home import write_private
from airi.up.providers import KnownProvider, providers_in

DEV_TENANT = "dev"
DEV_BUDGET_USD = 10
"""A day's hard budget of the development tenant: a paste gone wrong costs no more."""
SIM_POOL = "sim"
SIM_PRICES = {"sim/small": (0.05, 0.20), "sim/large": (0.50, 2.00), "sim/embed": (0.01, 0.0)}
"""Dollars per million tokens in and out: simulated too, so that limits and costs can be tried."""
FREE = (0.0, 0.0)
_HOSTED_OUTPUT_TOKENS = 16_384
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._/:@-]+")
_EMBEDDING = re.compile(r"embed|\bbge-|\bgte-|\be5-|minilm", re.IGNORECASE)

Resource = dict[str, Any]


class Adoption:
    """Collects resources. ``models`` lists (alias, where it runs, simulated) for the eye."""

    def __init__(self) -> None:
        self.resources: list[Resource] = []
        self.models: list[tuple[str, str, bool]] = []
        self._fast: list[Resource] = []
        self._hosted: list[Resource] = []
        self._local: list[Resource] = []
        self._embed: list[Resource] = []

    def add_tenant(self) -> None:
        """The tenant that ``dev.key`` belongs to."""
        budget = {"name": "daily", "usd": DEV_BUDGET_USD, "window": "day", "mode": "hard"}
        self._add(
            "Tenant", DEV_TENANT, "For trying things out; its key is AIRI_HOME/dev.key", budgets=[budget]
        )

    def add_engine(self, engine: Engine) -> None:
        """A local engine: a pool of one replica, and its models under their own names, free of charge."""
        pool = f"{engine.kind}-{engine.port}"
        self._add(
            "Pool",
            pool,
            f"{engine.kind}, found on this machine",
            engine="vllm" if engine.kind == "vllm" else "openai",
            replicas=[{"name": "local", "url": engine.url}],
        )
        for model in engine.models:
            found = self._add_model(model, {"pool": pool, "model": model}, FREE, pool)
            if found is not None:
                if found["contract"]["embeddings"]:
                    self._embed.append(found)
                else:
                    self._fast.append(found)
                    self._local.append(found)

    def add_provider(
        self,
        provider: KnownProvider,
        environment: Mapping[str, str],
        prices: Mapping[str, tuple[float, float]],
    ) -> None:
        """A hosted provider whose key the environment holds, and a few of its models as ``provider/model``."""
        address = environment.get(provider.base_url_variable or "", "") or provider.base_url
        self._add(
            "Provider",
            provider.name,
            f"{provider.key_variable} is set",
            dialect=provider.dialect,
            base_url=address,
            # OpenAI's own service speaks it; whether another at OPENAI_BASE_URL does is for its owner to say.
            responses=provider.name == "openai" and address == provider.base_url,
            api_key=f"${{env:{provider.key_variable}}}",
        )
        small, large, embed = (
            self._add_model(
                f"{provider.name}/{model}",
                {"provider": provider.name, "model": model},
                prices.get(provider.price_key(model)),
                provider.name,
                max_output_tokens=_HOSTED_OUTPUT_TOKENS,
            )
            if model
            else None
            for model in (provider.small, provider.large, provider.embed)
        )
        self._fast += [small] if small else []
        self._hosted += [large] if large else []
        self._embed += [embed] if embed else []

    def add_sim(self, ports: Sequence[int]) -> None:
        """The simulated pool: one replica a port."""
        self._add(
            "Pool",
            SIM_POOL,
            "A simulated engine: it answers like a model and is none",
            engine="sim",
            simulated=True,
            replicas=[
                {"name": f"sim-{n}", "url": f"http://127.0.0.1:{port}"} for n, port in enumerate(ports, 1)
            ],
        )
        for model, price in SIM_PRICES.items():
            found = self._add_model(
                model, {"pool": SIM_POOL, "model": model}, price, SIM_POOL, simulated=True
            )
            assert found is not None
            {"sim/small": self._fast, "sim/large": self._local, "sim/embed": self._embed}[model].append(found)

    def add_aliases(self) -> None:
        """``fast``, ``smart``, ``embed``: the first candidate of each, which is simulated only when none is real."""
        for alias, candidates in (
            ("fast", self._fast),
            ("smart", self._hosted + self._local),
            ("embed", self._embed),
        ):
            chosen = candidates[0]
            name = chosen["metadata"]["name"]
            simulated = name in SIM_PRICES
            if self._named("Model", alias):
                continue
            fields = {key: chosen[key] for key in ("versions", "contract", "price") if key in chosen}
            self._add("Model", alias, f"What {name} is", **fields)
            self.models.append((alias, name, simulated))

    def _add(self, kind: str, name: str, description: str, **fields: Any) -> Resource:
        metadata = {"name": name, "description": description}
        resource = {"apiVersion": "airi/v1alpha1", "kind": kind, "metadata": metadata, **fields}
        self.resources.append(resource)
        return resource

    def _add_model(
        self,
        model: str,
        target: Resource,
        price: tuple[float, float] | None,
        where: str,
        *,
        simulated: bool = False,
        **contract: Any,
    ) -> Resource | None:
        """Add a model unless its alias is taken (the first finder keeps it) or cannot be made of its name."""
        alias = _NOT_IN_NAMES.sub("-", model).strip("._/:@-")[:128]
        if not alias or self._named("Model", alias):
            return None
        fields: Resource = {
            "versions": [{"name": "v1", "targets": [target]}],
            "contract": {"embeddings": bool(_EMBEDDING.search(model)), **contract},
        }
        if price is not None:
            fields["price"] = {"input": price[0], "output": price[1]}
        self.models.append((alias, where, simulated))
        return self._add("Model", alias, f"Served by {where}", **fields)

    def _named(self, kind: str, name: str) -> bool:
        return any(r["kind"] == kind and r["metadata"]["name"] == name for r in self.resources)


def adopt(sim_ports: Sequence[int], engines: Sequence[Engine], environment: Mapping[str, str]) -> Adoption:
    """Return everything to serve: local engines before hosted ones for ``fast``, hosted before local for ``smart``."""
    adoption = Adoption()
    adoption.add_tenant()
    for engine in engines:
        adoption.add_engine(engine)
    providers = providers_in(environment)
    prices = _prices(providers)
    for provider in providers:
        adoption.add_provider(provider, environment, prices)
    adoption.add_sim(sim_ports)
    adoption.add_aliases()
    return adoption


def _prices(providers: Sequence[KnownProvider]) -> dict[str, tuple[float, float]]:
    """Return dollars per million tokens (in, out) for models that the registry would not find by their plain name."""
    wanted = [
        provider.price_key(model)
        for provider in providers
        for model in (provider.small, provider.large, provider.embed)
        if model and provider.price_key(model) != model
    ]
    if not wanted:
        return {}
    from routing.prices import PriceMap  # costs a start 0.2 s, which only those with such keys pay

    price_map = PriceMap.load()
    found = {name: price_map.price(name) for name in wanted}
    return {
        name: (price.rates[0].input / 1_000_000, price.rates[0].output / 1_000_000)
        for name, price in found.items()
        if price is not None
    }


def write_adopted(path: Path, adoption: Adoption) -> None:
    """Write the resources where the control plane reads them."""
    import yaml

    head = "# Written by `airi up` at each start: what it found. Edit airi.yaml instead; it wins.\n"
    write_private(path, head + yaml.safe_dump_all(adoption.resources, sort_keys=False))


def earlier_sim_ports(path: Path) -> list[int]:
    """Return the simulated replicas' ports of the last start, so that the configuration stays the same."""
    if not path.exists():
        return []
    return [
        int(port)
        for port in re.findall(r"name: sim-\d+\n\s+url: http://127\.0\.0\.1:(\d+)", path.read_text())
    ]
