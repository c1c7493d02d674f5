"""How the keys of Redis are named."""

from __future__ import annotations


def prefix(tenant: str) -> str:
    """Return what every key of a tenant begins with."""
    return f"airi:{{{tenant}}}:"


def epoch_name(server: str, rebuild: str) -> str:
    """Return the value of the epoch's key: the server that money was built for, and by which rebuild.

    A command that was sent before a rebuild and arrives after it carries an older value, and is refused.
    """
    return f"{server}:{rebuild}"


def is_epoch_of(epoch: str, server: str) -> bool:
    """Whether money was built for this server."""
    return epoch.partition(":")[0] == server != ""
