"""What looks wrong in a workflow and may yet come right: a warning, where the start of a run would be a refusal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from agents.tools.functions import FUNCTIONS, load_tools, tool_files
from airi.config.document import ConfigDocument
from airi.config.explain import did_you_mean
from airi.config.kinds import Tool, Workflow
from airi.config.positions import Where
from airi.errors import ConfigError

Functions = Callable[[], frozenset[str] | None]
"""The names of the Python functions that are tools; ``None`` where they cannot be known."""
_MAX_COMPARED = 200


def registered() -> frozenset[str]:
    """The functions of this process, which has loaded the tool files."""
    return frozenset(found.name for found in FUNCTIONS)


def functions_here() -> frozenset[str] | None:
    """The functions of the tool files of this machine: a worker elsewhere may have others than none, or than broken ones."""
    try:
        files = tool_files()
        with contextlib.redirect_stdout(sys.stderr):  # what a file prints is no part of our answer
            load_tools(files)
    except ConfigError:
        return None
    return registered() if files else None


def unknown_tools(
    workflow: Workflow, document: ConfigDocument, where: Where, functions: Functions = registered
) -> list[str]:
    """The tools that steps name and nobody has. Functions are asked for only where the configuration lacks a tool."""
    tools = {tool.metadata.name for tool in document.all(Tool)}
    missing = [(path, name) for path, name in _named(workflow) if name not in tools]
    known = functions() if missing else None
    if known is None:
        return []
    names = tools | known
    return [
        f"{where(*path)}: fits no Tool and no function so far"
        f"{did_you_mean(name, names) if len(names) <= _MAX_COMPARED else ''}"
        for path, name in missing
        if name not in known
    ]


def _named(workflow: Workflow) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where steps name tools. The form of steps is checked elsewhere; what has another one names none."""
    steps = (workflow.model_extra or {}).get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        options = step.get("with") if isinstance(step, dict) else None
        if not isinstance(options, dict):
            continue
        path = ("steps", index, "with")
        if step.get("call") == "tool" and isinstance(options.get("tool"), str):
            yield (*path, "tool"), options["tool"]
        elif step.get("call") == "agent" and isinstance(options.get("tools"), list):
            for number, name in enumerate(options["tools"]):
                if isinstance(name, str):
                    yield (*path, "tools", number), name
