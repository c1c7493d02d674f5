"""Why the tree of processes does not start."""

from __future__ import annotations

from airi.errors import UnavailableError


class StartError(UnavailableError):
    """Something on this machine is in the way; the message says what and what to do."""

    code = "cannot_start"
