"""How the keys of Redis are named."""

from __future__ import annotations


def prefix(tenant: str) -> str:
    """Return what every key of a tenant begins with."""
    return f"airi:{{{tenant}}}:"
