"""Tools: Python functions registered with :func:`tool`, and HTTP addresses declared as ``kind: Tool``."""

from agents.errors import ToolError
from agents.tools.functions import ToolContext, tool

__all__ = ["ToolContext", "ToolError", "tool"]
