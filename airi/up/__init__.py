"""The tree of processes that `airi up` starts, watches and stops."""
