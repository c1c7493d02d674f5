"""``python -m airi.up.launch MODULE …``: runs a module as a process of the tree, and starts it faster.

Importing makes hundreds of thousands of objects that all stay, and the garbage collector would look through them
again and again (a sixth of the time until ready). It rests until :func:`airi.up.ready.notify_ready`, which also puts what
was made by then out of its sight for good: collections while serving look at calls only.
"""

from __future__ import annotations

import gc
import runpy
import sys


def main() -> None:
    """Become ``MODULE``, as ``python -m MODULE`` would."""
    gc.disable()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
