"""Where a key may be used: models, routes and networks."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from airi.errors import InvalidRequestError
from airi.keys.errors import ScopeError
from airi.keys.record import KeyRecord
from airi.patterns import allowed

Network = IPv4Network | IPv6Network


def check(
    record: KeyRecord, *, model: str | None = None, route: str | None = None, peer: str | None = None
) -> None:
    """Raise :class:`ScopeError` when the key may not be used so; what is not given is not checked."""
    if model is not None and record.models and not allowed(record.models, model):
        raise ScopeError(
            f"this key may not call model {model!r}", code="model_not_allowed", param="model"
        )  # fmt: skip
    if route is not None and record.routes and not allowed(record.routes, route):
        raise ScopeError(f"this key may not use {route}", code="route_not_allowed")
    if peer is not None and record.cidrs and not peer_allowed(record.cidrs, peer):
        raise ScopeError("this key may not be used from your address", code="address_not_allowed")


@lru_cache(maxsize=4_096)
def peer_allowed(cidrs: tuple[str, ...], peer: str) -> bool:
    """Whether the address ``peer`` lies in one of the networks; what is no address lies in none."""
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks(cidrs))


@lru_cache(maxsize=1_024)
def networks(cidrs: tuple[str, ...]) -> tuple[Network, ...]:
    """Return the networks; :class:`InvalidRequestError` names the one that is none."""
    result = []
    for text in cidrs:
        try:
            result.append(ip_network(text, strict=False))
        except ValueError as error:
            raise InvalidRequestError(
                f"{text!r} is not a network such as 10.0.0.0/8 or 2001:db8::/32", param="cidrs"
            ) from error
    return tuple(result)
