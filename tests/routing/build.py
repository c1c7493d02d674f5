"""Short ways to make configuration for the tests of this room."""

from __future__ import annotations

from typing import Any

from airi.config.document import ConfigDocument
from airi.config.kinds import AnyResource, Model, Pool, Provider
from routing.prices import PriceMap
from routing.registry import RoutingTable

_HEAD = {"apiVersion": "airi/v1alpha1"}


def pool(name: str, *urls: str, **fields: Any) -> Pool:
    replicas = [{"name": f"r{number}", "url": url} for number, url in enumerate(urls)]
    return Pool.model_validate(
        {
            **_HEAD,
            "kind": "Pool",
            "metadata": {"name": name},
            "engine": "openai",
            "replicas": replicas,
            **fields,
        }
    )


def provider(name: str, base_url: str, **fields: Any) -> Provider:
    return Provider.model_validate(
        {**_HEAD, "kind": "Provider", "metadata": {"name": name}, "base_url": base_url, **fields}
    )


def model(name: str, *targets: dict[str, Any], **fields: Any) -> Model:
    full = [{"model": "there", **target} for target in targets]
    return Model.model_validate(
        {
            **_HEAD,
            "kind": "Model",
            "metadata": {"name": name},
            "versions": [{"name": "v1", "targets": full}],
            **fields,
        }
    )


def table(*resources: AnyResource, prices: PriceMap | None = None) -> RoutingTable:
    return RoutingTable.build(ConfigDocument.of(resources), prices or PriceMap({}))
