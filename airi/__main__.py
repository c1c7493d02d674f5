"""``python -m airi``: the command line."""

import sys

from airi.cli import main

if __name__ == "__main__":
    sys.exit(main())
