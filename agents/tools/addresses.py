"""Which addresses a tool may reach: names are resolved once, every answer is checked, the connection is pinned to it.

Private, loopback, link-local and metadata addresses (v4, v6, mapped, translated) are refused unless the tool's
declaration in a file says ``allow_private``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from agents.errors import ToolRefusedError

_TRANSLATED = tuple(
    ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


def is_public(text: str) -> bool:
    """Whether an IP address (as text) lies in the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast


def refuse_private_literal(host: str) -> None:
    """Refuse a host that is a private address written out; names are checked when they are resolved."""
    try:
        public = is_public(host.strip("[]"))
    except ValueError:
        return
    if not public:
        raise ToolRefusedError(
            f"{host} is not a public address; a tool in a file may set 'allow_private: true'"
        )


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only; what it returns is what is connected to."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """All addresses of ``host``; :class:`ToolRefusedError` when any of them is not public."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        results: list[ResolveResult] = []
        for kind, _, protocol, _, address in found:
            text = str(address[0])
            if not is_public(text):
                raise ToolRefusedError(
                    f"{host} resolves to an address that is not public; a tool in a file may set 'allow_private: true'"
                )
            results.append(
                ResolveResult(
                    hostname=host,
                    host=text,
                    port=port,
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        return results

    async def close(self) -> None:
        """Nothing is held."""
