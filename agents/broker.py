"""Celery's broker from the same URLs that AIRI's other clients of Redis read."""

from __future__ import annotations

from urllib.parse import quote

from airi.logs import hide
from airi.redis_protocol import Address, is_address


def of_kombu(broker_url: str) -> tuple[str, dict[str, str] | None]:
    """Return the broker's URL and TLS options as kombu takes them; what is none of AIRI's Redis URLs stays as it is.

    kombu knows no ``unix://``, looks for the database elsewhere, and verifies no certificate unless told to.
    """
    if not is_address(broker_url):
        return broker_url, None
    address = Address.parse(broker_url)
    hide(address.password)  # kombu hides it, but not where a server repeats what it was sent
    login = f"{quote(address.username, safe='')}:{quote(address.password, safe='')}@"
    login = "" if login == ":@" else login
    if address.path:
        return f"redis+socket://{login}{quote(address.path)}?virtual_host={address.database}", None
    host = f"[{address.host}]" if ":" in address.host else address.host
    place = f"{login}{host}:{address.port}/{address.database}"
    if not address.tls:
        return f"redis://{place}", None
    return f"rediss://{place}", {"ssl_cert_reqs": "required", **address.options}
