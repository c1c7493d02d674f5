"""The command line. Each command is imported when it is called, so that the shell never waits for the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import airi

_COMMANDS = {
    "up": ("processes", "start everything on this machine"),
    "gateway": ("processes", "start one gateway process"),
    "worker": ("processes", "start one worker for workflows"),
    "validate": ("configuration", "check configuration files"),
    "diff": ("configuration", "show what applying files would change"),
    "apply": ("configuration", "apply files to the running gateway"),
    "rollback": ("configuration", "make an earlier version of the configuration serve again"),
    "key": ("keys", "create, list, rotate and revoke keys"),
    "policy": ("policies", "test policies and explain their decisions"),
    "workflow": ("workflows", "start and list workflows"),
    "run": ("runs", "show, watch, cancel and resume runs"),
    "trace": ("traces", "show what happened in a call, and why"),
    "models": ("models", "list the models that can be called"),
    "doctor": ("doctor", "look for what is wrong with this machine or home"),
    "ledger": ("storage", "prove that the money adds up"),
    "audit": ("audit", "prove that the trail of administrative writes is whole"),
    "migrate": ("storage", "bring the databases up to date"),
    "backup": ("storage", "save all state into one file"),
    "restore": ("storage", "put a backup into an empty home"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 when all is well, 1 when the answer is no, 2 when the command was not understood."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        sys.stdout.write(f"airi {airi.__version__}\n")
        return 0
    if words[0] not in _COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(words[0], _COMMANDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        sys.stderr.write(f"airi: there is no command {words[0]!r}{hint} (airi --help lists them)\n")
        return 2
    theme = import_module(f"airi.cli.{_COMMANDS[words[0]][0]}")
    from airi.cli.runner import run

    return run(theme.PARSERS[words[0]], words)


def _overview() -> str:
    lines = ["airi: an AI runtime, one OpenAI-compatible door to every model.", "", "commands:"]
    lines += [f"  {name:<10} {summary}" for name, (_, summary) in _COMMANDS.items()]
    lines += ["", "airi COMMAND --help shows each with an example. Start here:  airi up", ""]
    return "\n".join(lines)
