"""What can go wrong with an embedded part."""

from __future__ import annotations

from airi.errors import UnavailableError


class EmbeddedPartError(UnavailableError):
    """An embedded part is not on this machine or does not start."""

    code = "embedded_part_missing"
