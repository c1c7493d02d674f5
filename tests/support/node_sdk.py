"""OpenAI's Node SDK, installed into a folder of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("openai@6.30.1", "zod@4.6.7")


def install_node_sdk(folder: Path) -> Path:
    """Install the SDK into ``folder``; skip (fail in CI) where that cannot be done."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    command = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
        failed = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = "npm took longer than 100 s"
    if failed:
        words = f"the Node SDK could not be installed: {failed[-500:]}"
        pytest.fail(words) if os.environ.get("CI") == "true" else pytest.skip(words)
    return folder


def run_node(folder: Path, script: str, *, key: str, base_url: str) -> Any:
    """Run a module in ``folder`` and return the JSON that it prints."""
    (folder / "drive.mjs").write_text(script)
    environment = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": key, "OPENAI_BASE_URL": base_url}
    done = subprocess.run(
        ["node", "drive.mjs"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
