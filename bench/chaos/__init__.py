"""The fault matrix: real processes of a whole tree, really killed under runs in flight (``python -m bench.chaos``)."""
