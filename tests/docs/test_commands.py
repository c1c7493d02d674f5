"""Every command block of the README and of docs/ runs as printed, on a tree of its own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live import ROOT, Live

pytestmark = pytest.mark.integration
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#]+)")


def blocks(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text())


@pytest.fixture(scope="module")
def tree(short_tmp: Path) -> Iterator[Live]:
    with Live(short_tmp / "docs") as live:
        yield live


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_commands_work_as_printed(page: Path, tree: Live, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("examples", "docs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".airi").symlink_to(tree.home)
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    launcher = binaries / "airi"
    launcher.write_text(f'#!/bin/sh\nexec "{ROOT}/.venv/bin/python" -m airi "$@"\n')
    launcher.chmod(0o755)
    script = "set -eu\n" + "\n".join(blocks(page)).replace("127.0.0.1:4000", f"127.0.0.1:{tree.port}")
    environment = {
        **{name: value for name, value in tree.environment.items() if name != "AIRI_CONFIG"},
        "PATH": f"{binaries}:{ROOT}/.venv/bin:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["sh", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert '"error"' not in done.stdout, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"
