"""Becomes a child process that dies with its parent: ``shim.py PARENT_PID COMMAND…``.

Linux: asks the kernel to kill this process when the parent's thread that started it ends (PR_SET_PDEATHSIG, which
``exec`` keeps), then becomes COMMAND. Elsewhere it only becomes COMMAND; there, and for grandchildren everywhere,
``guard.py`` does the killing. A file of its own that imports next to nothing, because it runs before every child.
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Arrange for death with ``parent``, then become ``command``; does not return."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  # becoming the command is the point


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
