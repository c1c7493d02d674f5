"""How a child process says that it can serve: one line on a pipe that the supervisor gave it."""

from __future__ import annotations

import contextlib
import gc
import os

READY_FD = "AIRI_READY_FD"
"""The environment variable that holds the number of the pipe's descriptor."""


def notify_ready() -> None:
    """Write ``READY`` to the supervisor's pipe, once; does nothing when no supervisor asks."""
    if not gc.isenabled():  # see airi.up.launch
        gc.freeze()
        gc.enable()
    number = os.environ.pop(READY_FD, "")
    if not number.isdigit():
        return
    descriptor = int(number)
    # A supervisor that is gone or has given up on us is no reason to die here.
    with contextlib.suppress(OSError):
        os.write(descriptor, b"READY\n")
    with contextlib.suppress(OSError):
        os.close(descriptor)
