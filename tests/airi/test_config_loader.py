"""Reading configuration: what is understood, what is refused, and that every complaint names its line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from airi.config.composer import compose, resolve_plain
from airi.config.kinds import Policy, Provider
from airi.config.loader import load_data, load_files, load_text
from airi.errors import ConfigError


def problems(text: str, name: str = "airi.yaml") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, name)
    return caught.value.problems


MODEL = """\
apiVersion: airi/v1alpha1
kind: Model
metadata: {name: gpt}
versions:
  - name: v1
    targets:
      - pool: sim
        modle: x
      - provider: openai
        model: 5
"""


def test_unknown_key_is_named_with_line_and_suggestion() -> None:
    assert problems(MODEL) == [
        "airi.yaml:7: Model/gpt: versions.0.targets.0.model: is missing",
        "airi.yaml:8: Model/gpt: versions.0.targets.0.modle: unknown key; did you mean 'model'?",
        "airi.yaml:10: Model/gpt: versions.0.targets.1.model: expected text; put it in quotes",
    ]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("mode: enforced", ":5: Policy/p: mode: expected 'enforce', 'shadow' or 'off', got 'enforced'; did you mean 'enforce'?"),
        ("stages: [prompt, respons]", ":5: Policy/p: stages.1: expected 'prompt' or 'response', got 'respons'; did you mean 'response'?"),
        ("stages: []", ":5: Policy/p: stages: list should have at least 1 item after validation, not 0"),
        ("scope:\n  tenants: acme", ":6: Policy/p: scope.tenants: expected a list (lines that begin with '- ')"),
        ("scope: acme", ":5: Policy/p: scope: expected a mapping (lines of 'key: value')"),
        ("route_to: x", ":1: Policy/p: 'route_to' goes with effect 'route', and effect 'route' needs it"),
        ("mode: shadow\nmode: off", ":6: key 'mode' is given twice in this mapping (first in line 5)"),
        ("detectors: [{id: pii, min_score: 2}]", ":5: Policy/p: detectors.0.min_score: should be less than or equal to 1"),
        ("detectors: [{id: pii, min_score: .nan}]", ":5: Policy/p: detectors.0.min_score: expected a number"),
        ("scoop: {}", ":5: Policy/p: scoop: unknown key; did you mean 'scope'?"),
    ],
)  # fmt: skip
def test_wrong_values(lines: str, expected: str) -> None:
    text = f"apiVersion: airi/v1alpha1\nkind: Policy\nmetadata: {{name: p}}\neffect: deny\n{lines}\n"
    assert problems(text, "f") == [f"f{expected}"]


def test_all_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MODEL)
    (tmp_path / "b.yml").write_text("kind: Polcy\n---\n- 1\n---\nkind: [x]\n")
    (tmp_path / "c.yaml").write_text("a: [1, 2\nb: sk-secret\n")
    (tmp_path / "d.yaml").write_bytes(b"ok: yes\nname: \xff\n")
    (tmp_path / ".hidden.yaml").write_text("!!")
    (tmp_path / "note.txt").write_text("not read")
    with pytest.raises(ConfigError) as caught:
        load_files([tmp_path, tmp_path / "missing.yaml"])
    found = [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]
    assert "b.yml:1: kind: unknown kind 'Polcy'; did you mean 'Policy'?" in found
    assert "b.yml:3: expected a mapping with apiVersion, kind and metadata" in found
    assert any(line.startswith("b.yml:5: kind: expected one of Provider") for line in found)
    assert "c.yaml:2: not valid YAML: did not find expected ',' or ']'" in found
    assert "d.yaml:2: not UTF-8 text (byte 14)" in found
    assert "missing.yaml: does not exist" in found
    assert len(found) == 9
    assert not any("sk-secret" in line or "hidden" in line or "note" in line for line in found)


def test_the_same_resource_twice_names_both_places(tmp_path: Path) -> None:
    tenant = "apiVersion: airi/v1alpha1\nkind: Tenant\nmetadata: {name: t}\n"
    (tmp_path / "a.yaml").write_text(tenant)
    (tmp_path / "b.yaml").write_text(f"# comment\n{tenant}")
    with pytest.raises(ConfigError) as caught:
        load_files([tmp_path])
    assert caught.value.problems == [
        f"{tmp_path}/b.yaml:4: Tenant/t: metadata.name: is defined twice (first in {tmp_path}/a.yaml:1)"
    ]


def test_secrets_in_plain_text_are_refused_and_never_repeated() -> None:
    text = """\
apiVersion: airi/v1alpha1
kind: Provider
metadata: {name: o}
base_url: https://api.example.com/v1
api_key: sk-very-secret
secret_headers:
  x-key: sk-also-secret
api_kee: sk-third
"""
    found = problems(text, "f")
    assert [line.split(": ")[0] for line in found] == ["f:5", "f:7", "f:8"]
    assert "expected ${env:NAME} or ${file:PATH}" in found[0]
    assert not any("sk-" in line for line in found)


def test_yaml_words_are_words() -> None:
    text = "apiVersion: airi/v1alpha1\nkind: Policy\nmetadata: {name: no, labels: {on: yes}}\nmode: off\neffect: deny\n"
    resource = load_text(text)[0].resource
    assert isinstance(resource, Policy)
    assert (resource.mode, resource.metadata.name, resource.metadata.labels) == ("off", "no", {"on": "yes"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("False", False), ("yes", "yes"), ("off", "off"),
        ("12", 12), ("-3", -3), ("0o17", 15), ("0x1f", 31), ("1.5", 1.5), ("1e3", 1000.0), (".5", 0.5),
        ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), (".inf", ".inf"), (".nan", ".nan"), ("-", "-"),
        ("1e999", "1e999"), ("9" * 40, float("9" * 40)), ("0.7.1", "0.7.1"), ("12:30", "12:30"),
    ],
)  # fmt: skip
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve_plain(text)
    assert found == value
    assert type(found) is type(value)


def test_anchors_and_merges() -> None:
    documents, faults = compose(
        "base: &b {x: 1, y: [a]}\none: {<<: *b, x: 2}\ntwo: {<<: [*b, {z: 3}]}\nthree: *b\n", "f"
    )
    assert not faults
    assert documents[0].value == {
        "base": {"x": 1, "y": ["a"]},
        "one": {"x": 2, "y": ["a"]},
        "two": {"x": 1, "y": ["a"], "z": 3},
        "three": {"x": 1, "y": ["a"]},
    }
    assert documents[0].mark.line_of(("three", "y", 0)) == 1
    assert documents[0].mark.line_of(("two",)) == 3
    assert compose("a: *nope\n", "f")[1] == ["f:1: *nope names no anchor above it"]
    assert compose("a: &x [*x]\n", "f")[1] == ["f:1: *x names no anchor above it"]
    assert compose("a: {<<: 3}\n", "f")[1] == ["f:1: '<<' takes a mapping or a list of mappings"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "f:1: nested deeper than 64 levels"),
        ("a: !!python/object/apply:os.system [x]\n", "f:1: tags such as tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !secret x\n", "f:1: tags such as !secret are not supported"),
        ("? [a, b]\n: c\n", "f:1: a key must be a word"),
        ("a: \x01\n", "f:1: not valid YAML"),
        ("\tb: 1\n", "f:1: not valid YAML"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused(text: str, fault: str) -> None:
    assert compose(text, "f")[1][0].startswith(fault)


def test_alias_bombs_are_cut_off_quickly() -> None:
    levels = [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(12)]
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(levels)
    started = time.process_time()
    assert compose(bomb, "f")[1] == ["f:7: aliases unfold to more than 4,000,000 values"]
    assert time.process_time() - started < 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(categories=["L", "Nd"]), min_size=1), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from("abc"), plain))
def test_quoted_yaml_reads_back_as_it_was(data: dict[str, object]) -> None:
    """JSON is YAML with every string in quotes, so nothing is left to the meaning of plain scalars."""
    import json

    documents, faults = compose(json.dumps(data, ensure_ascii=False), "f")
    assert not faults
    assert documents[0].value == data


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_is_answered_with_data_or_a_complaint(text: str) -> None:
    documents, faults = compose(text, "f")
    assert isinstance(documents, list)
    assert all(fault.startswith("f:") for fault in faults)


def test_our_dumps_read_back() -> None:
    text = yaml.safe_dump({"a": "off", "b": "1", "c": 1.0, "d": None, "e": "", "f": "null"})
    documents, faults = compose(text, "f")
    assert not faults
    assert documents[0].value == {"a": "off", "b": "1", "c": 1.0, "d": None, "e": "", "f": "null"}


def test_json_data_is_checked_without_lines() -> None:
    with pytest.raises(ConfigError) as caught:
        load_data(
            [{"apiVersion": "airi/v1alpha1", "kind": "Tenant", "metadata": {"name": "t"}, "wait": 1}, 3]
        )
    assert caught.value.problems == [
        "Tenant/t: wait: unknown key; did you mean 'weight'?",
        "configuration: expected a mapping with apiVersion, kind and metadata",
    ]


def test_where_names_file_line_and_path() -> None:
    text = (
        "\n\napiVersion: airi/v1alpha1\nkind: Provider\nmetadata:\n  name: o\nbase_url: https://x.example\n"
    )
    item = load_text(text, "dir/x.yaml")[0]
    assert isinstance(item.resource, Provider)
    assert item.where("base_url") == "dir/x.yaml:7: Provider/o: base_url"
    assert item.where("metadata", "name") == "dir/x.yaml:6: Provider/o: metadata.name"
    assert item.where("timeouts", "total") == "dir/x.yaml:3: Provider/o: timeouts.total"


def test_two_thousand_resources_load_fast() -> None:
    one = "apiVersion: airi/v1alpha1\nkind: {kind}\nmetadata: {{name: n{i}}}\n{rest}\n"
    policy = "mode: enforce\nscope: {tenants: [acme]}\nwhen: 'model.region != \"eu\"'\neffect: deny\n"
    tenant = "limits: {requests_per_minute: 5}\nteams:\n  - name: a\n    budgets: [{name: b, usd: 1.5}]\n"
    text = "---\n".join(
        one.format(kind=kind, i=i, rest=rest)
        for i in range(1_000)
        for kind, rest in (("Policy", policy), ("Tenant", tenant))
    )
    started = time.process_time()
    assert len(load_text(text)) == 2_000
    assert time.process_time() - started < 2  # 0.4 s on an idle machine
