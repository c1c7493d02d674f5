"""Checks over several resources."""

from __future__ import annotations

from typing import Any

import pytest

from airi.config.document import ConfigDocument
from airi.config.loader import load_text
from airi.config.positions import Where
from airi.config.validation import Findings, check, references

HEAD = "apiVersion: airi/v1alpha1\n"
GOOD = f"""\
{HEAD}kind: Pool
metadata: {{name: sim}}
replicas: [{{name: a, url: "http://127.0.0.1:9000"}}]
---
{HEAD}kind: Model
metadata: {{name: small}}
versions: [{{name: v1, targets: [{{pool: sim, model: sim/small}}]}}]
---
{HEAD}kind: Tenant
metadata: {{name: acme}}
"""


def run(text: str, **more: Any) -> Findings:
    loaded = load_text(text, "f")
    document = ConfigDocument.of(item.resource for item in loaded)
    return check(document, places={item.key: item.where for item in loaded}, **more)


def test_a_sound_configuration_has_no_findings() -> None:
    assert run(GOOD) == Findings()


def test_dangling_references_are_problems_with_suggestions() -> None:
    text = f"""\
{GOOD}---
{HEAD}kind: Model
metadata: {{name: big}}
versions:
  - name: v1
    targets:
      - {{pool: simm, model: x}}
      - {{provider: openai, model: y}}
fallbacks: [smal, big]
---
{HEAD}kind: Policy
metadata: {{name: p}}
effect: route
route_to: nowhere
"""
    assert run(text).problems == [
        "f:23: Model/big: fallbacks.1: a model cannot fall back to itself",
        "f:21: Model/big: versions.0.targets.0.pool: there is no Pool 'simm'; did you mean 'sim'?",
        "f:22: Model/big: versions.0.targets.1.provider: there is no Provider 'openai'",
        "f:23: Model/big: fallbacks.0: there is no Model 'smal'; did you mean 'small'?",
        "f:29: Policy/p: route_to: there is no Model 'nowhere'",
    ]


def test_names_in_scopes_that_fit_nothing_are_warnings() -> None:
    text = f"""\
{GOOD}---
{HEAD}kind: Policy
metadata: {{name: p}}
scope: {{tenants: [acm], models: ["gpt-*", smal, workflow/x]}}
effect: deny
"""
    findings = run(text)
    assert findings.problems == []
    assert findings.warnings == [
        "f:18: Policy/p: scope.tenants.0: fits no Tenant so far; did you mean 'acme'?",
        "f:18: Policy/p: scope.models.1: fits no Model so far; did you mean 'small'?",
    ]


def test_a_variable_that_is_not_set_here_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AN_UNSET_KEY", raising=False)
    text = f"""\
{HEAD}kind: Provider
metadata: {{name: o}}
base_url: https://h.example/v1
api_key: "${{env:AN_UNSET_KEY}}"
secret_headers:
  x-a: "${{env:HOME}}"
  x-b.c: "${{env:AN_UNSET_KEY}}"
"""
    findings = run(text)
    assert not findings.problems
    assert [warning.partition(" is not set")[0] for warning in findings.warnings] == [
        "f:5: Provider/o: api_key: the environment variable AN_UNSET_KEY",
        "f:8: Provider/o: secret_headers.x-b.c: the environment variable AN_UNSET_KEY",
    ]
    monkeypatch.setenv("AN_UNSET_KEY", "sk")
    assert run(text) == Findings()
    monkeypatch.setenv("AIRI_SECRET_KEY", "own")
    assert run(text.replace("AN_UNSET_KEY", "AIRI_SECRET_KEY")).warnings[0] == (
        "f:5: Provider/o: api_key: AIRI_SECRET_KEY is AIRI's own, which no upstream is given; these calls fail"
    )


def test_what_is_wrong_within_one_resource() -> None:
    text = f"""\
{HEAD}kind: Provider
metadata: {{name: a}}
base_url: https://user:pw@api.example.com
headers: {{Authorization: Bearer x, x-ok: y}}
tls: {{client_certificate: /c.pem}}
---
{HEAD}kind: Provider
metadata: {{name: b}}
base_url: ftp://api.example.com
---
{HEAD}kind: Pool
metadata: {{name: p}}
replicas: [{{name: a, url: "http://h:99999"}}, {{name: a, url: localhost}}]
---
{HEAD}kind: Tenant
metadata: {{name: t}}
teams: [{{name: x, budgets: [{{name: b, usd: 1}}, {{name: b, usd: 2}}]}}, {{name: x}}]
---
{HEAD}kind: Model
metadata: {{name: workflow/x}}
versions: [{{name: v, targets: [{{pool: p, model: m, weight: 0}}]}}]
"""
    problems = run(text).problems
    assert [line.split(": ", 1)[1] for line in problems] == [
        "Model/workflow/x: metadata.name: names with 'workflow/' belong to workflows",
        "Model/workflow/x: versions.0.targets: every weight is 0, so nothing can be chosen",
        "Pool/p: replicas.1.name: two replicas are called 'a'",
        "Pool/p: replicas.0.url: not a valid address",
        "Pool/p: replicas.1.url: expected an address such as https://api.example.com/v1",
        "Provider/a: base_url: credentials must not stand in an address; use api_key or secret_headers",
        "Provider/a: headers.Authorization: this header carries a secret; put it into secret_headers as ${env:NAME}",
        "Provider/a: tls: client_certificate and client_key must be given together",
        "Provider/b: base_url: expected an address such as https://api.example.com/v1",
        "Tenant/t: teams.1.name: two teams are called 'x'",
        "Tenant/t: teams.0.budgets.1.name: two budgets are called 'b'",
    ]


def test_rooms_check_their_kinds_and_only_what_changed() -> None:
    seen: list[str] = []

    def deep(resource: Any, where: Where) -> list[str]:
        seen.append(resource.metadata.name)
        return [f"{where('versions')}: not to my taste"]

    assert run(GOOD, validators={"Model": deep}).problems == ["f:9: Model/small: versions: not to my taste"]
    assert run(GOOD, validators={"Model": deep}, changed=[("Tenant", "acme")]).problems == []
    assert seen == ["small"]


def test_references_name_their_places() -> None:
    model = load_text(GOOD)[1].resource
    assert list(references(model)) == [("Pool", "sim", ("versions", 0, "targets", 0, "pool"))]


def test_a_workflow_that_names_a_model_of_nobody_is_warned_of() -> None:
    text = f"""\
{GOOD}---
{HEAD}kind: Workflow
metadata: {{name: flow}}
steps:
  - {{id: a, call: llm, with: {{model: smal, prompt: x}}}}
  - {{id: b, call: llm, with: {{model: small, prompt: x}}}}
  - {{id: c, call: llm, with: {{model: "${{{{ inputs.model }}}}", prompt: x}}}}
  - {{id: d, call: llm, with: {{model: workflow/floe, prompt: x}}}}
"""
    found = run(text)
    assert found.problems == []
    assert [line.partition("steps.")[2] for line in found.warnings] == [
        "0.with.model: fits no Model so far; did you mean 'small'?",
        "3.with.model: fits no Workflow so far; did you mean 'flow'?",
    ]
