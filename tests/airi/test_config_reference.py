"""The reference for people and for editors is made from the models, and current."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from airi.config.kinds import KINDS
from airi.config.loader import load_text
from airi.config.reference import json_schema, markdown

ROOT = Path(__file__).parents[2]
HEAD = {"apiVersion": "airi/v1alpha1", "metadata": {"name": "x"}}


def test_the_written_reference_is_current() -> None:
    """Run scripts/docs-configuration when this fails."""
    import json

    assert (ROOT / "docs/configuration.md").read_text() == markdown()
    assert json.loads((ROOT / "docs/airi.schema.json").read_text()) == json_schema()


def test_every_kind_and_key_is_told() -> None:
    text = markdown()
    for name, kind in KINDS.items():
        assert f"### {name}\n" in text
        if name != "Workflow":
            section = text.split(f"### {name}\n")[1].split("\n### ")[0]
            for field, info in kind.model_fields.items():
                if field not in ("api_version", "kind", "metadata"):
                    assert f"`{info.alias or field}`" in section


def test_every_variable_of_the_settings_is_told() -> None:
    source = (ROOT / "airi/settings.py").read_text()
    for name in set(re.findall(r'"(AIRI_[A-Z_]+)"', source)):
        assert f"`{name}`" in markdown(), name


def test_the_example_of_the_reference_is_valid_yaml_and_schema() -> None:
    import yaml

    example = markdown().split("```yaml\n")[1].split("```")[0]
    assert [item.resource.kind for item in load_text(example)] == ["Provider", "Model", "Tenant"]
    for document in yaml.safe_load_all(example):
        jsonschema.validate(document, json_schema())


@pytest.mark.parametrize(
    ("document", "valid"),
    [
        ({**HEAD, "kind": "Tenant", "budgets": [{"name": "b", "usd": "1.50", "window": "day"}]}, True),
        (
            {**HEAD, "kind": "Pool", "replicas": [{"name": "a", "url": "http://x"}], "scrape_interval": "1s"},
            True,
        ),
        (
            {
                **HEAD,
                "kind": "Pool",
                "replicas": [{"name": "a", "url": "http://x"}],
                "scrape_interval": "1 s",
            },
            False,
        ),
        ({**HEAD, "kind": "Workflow", "steps": []}, True),
        ({**HEAD, "kind": "Tenant", "wait": 1}, False),
        ({**HEAD, "kind": "Tenent"}, False),
        ({"kind": "Tenant", "metadata": {"name": "x"}}, False),
        ({**HEAD, "kind": "Provider", "base_url": "https://x", "api_key": "sk-1"}, False),
    ],
)
def test_the_schema_tells_right_from_wrong(document: dict[str, Any], valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(document) is valid
