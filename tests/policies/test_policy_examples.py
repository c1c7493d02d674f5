"""The examples are valid and their tests pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from airi.config.kinds import Policy
from policies.documents import policy_problems
from policies.testing import run_tests

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "policies").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    resource = Policy.model_validate(yaml.safe_load(path.read_text()))
    assert policy_problems(resource) == []
    results = run_tests([resource])
    assert results
    assert [(result.test, result.differences) for result in results if not result.passed] == []


def test_the_page_on_policies_shows_the_example_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    shown = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    real = yaml.safe_load((EXAMPLES[0].parent / "redact.yaml").read_text())
    assert shown == {key: value for key, value in real.items() if key != "tests"}
