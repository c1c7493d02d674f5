"""The compose file, the image and what they mount: right by schema, and true of this very tree. They are not run here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml

from airi.cli.processes import PARSERS
from airi.config.document import ConfigDocument
from airi.config.loader import load_files
from airi.config.validation import check
from airi.settings import Settings
from airi.up.specs import DRAIN_ORDER
from policies.documents import policy_problems

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "airi:local"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    folder = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.validate(COMPOSE)
    with pytest.raises(jsonschema.ValidationError):  # the schema does refuse what is wrong
        validator.validate({"services": {"a": {"imagee": "x"}}})


def environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in OURS:
        found |= SERVICES[name]["environment"]
    return found


def test_every_variable_exists() -> None:
    known = {f"AIRI_{field.name.upper()}" for field in fields(Settings)}
    sources = (ROOT / "observability" / "exporter.py").read_text()
    sources += (ROOT / "airi" / "up" / "providers.py").read_text()
    for name in [*environment(), *re.findall(r"\b(AIRI_[A-Z_]+)=", DOCKERFILE)]:
        assert name in known or name in sources, f"{name} means nothing to AIRI"


def test_the_settings_that_it_makes_can_be_read(tmp_path: Path) -> None:
    text = json.dumps(environment())
    filled = json.loads(re.sub(r"\$\{(\w+):[^}]*\}", r"value-of-\1-which-is-long-enough", text))
    filled["AIRI_CONFIG"] = str(ROOT / "deploy" / "airi.yaml")
    settings = Settings.from_environment({**filled, "AIRI_HOME": str(tmp_path)})
    assert settings.database_url is not None
    assert settings.database_url.startswith("postgresql")
    assert settings.redis_url != settings.broker_url


def test_every_command_exists() -> None:
    for name in OURS:
        words = SERVICES[name]["command"]
        arguments = PARSERS[words[0]]().parse_args(words[1:])
        if words[0] == "up":
            assert set(arguments.only) < set(DRAIN_ORDER)
            assert "redis" not in arguments.only, "Redis is a service of its own"
    ping = SERVICES["worker"]["healthcheck"]["test"]
    assert ping[:3] == ["CMD", "airi", "worker"]
    assert PARSERS["worker"]().parse_args(ping[3:]).ping


def test_services_depend_on_services_and_mount_what_is_there() -> None:
    for name, service in SERVICES.items():
        depends = service.get("depends_on", [])
        for other in depends:
            assert other in SERVICES, f"{name} needs {other}"
            healthy = isinstance(depends, dict) and depends[other]["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in SERVICES[other] or other in OURS, (
                f"{other} says not how it is"
            )
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert there, f"{name} mounts {source}"
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"]


def test_addresses_between_services_lead_to_services() -> None:
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "deploy" / "prometheus.yml").read_text()
    text += (ROOT / "deploy" / "otel-collector.yaml").read_text()
    for host in re.findall(r"(?:://(?:[^@/\s]*@)?|[\"' ])([a-z]+):\d{4,5}\b", text):
        assert host in SERVICES or host == "localhost", host


def test_what_is_published_is_published_to_this_machine_alone() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port


def test_the_image_runs_without_privileges_and_holds_no_secret() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    user = re.findall(r"^USER (\S+)", final, re.MULTILINE)
    assert user == ["airi"]
    assert final.index("USER airi") < final.index("ENTRYPOINT")
    assert "HEALTHCHECK" in final
    assert "--require-hashes" in DOCKERFILE
    assert not re.search(r"(?i)(key|secret|password|token)\s*=", DOCKERFILE)
    assert not re.search(r"^ARG ", DOCKERFILE, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".airi", ".env", "*.key"} <= set(ignored)


def test_no_secret_stands_in_the_files() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"(KEY|PASSWORD|TOKEN)$", name):
                assert re.fullmatch(r"\$\{\w+:[?-][^}]*\}", str(value)), name


def test_the_configuration_of_the_compose_file_is_valid() -> None:
    text = (ROOT / "deploy" / "airi.yaml").read_text()
    served = load_files([ROOT / "deploy" / "airi.yaml"])
    document = ConfigDocument.of(item.resource for item in served)
    assert check(document, validators={"Policy": policy_problems}).problems == []
    commented = re.sub(r"^# (?=---|\w+:)", "", text, flags=re.MULTILINE)
    assert [item["kind"] for item in yaml.safe_load_all(commented)] == ["Tenant", "Policy", "Pool", "Model"]


def test_the_packages_in_the_image_hold_every_file() -> None:
    """What is not Python must be named in the package's data, or the image lacks it."""
    patterns = {".py", ".lua", ".html", ".css", ".js", ".svg", ".typed"}
    only_for_docs = {"airi/config/configuration.md"}
    listed = subprocess.run(
        ["git", "ls-files", "airi", "gateway", "policies", "routing", "agents", "observability"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    for name in set(listed) - only_for_docs:
        path = Path(name)
        assert path.suffix in patterns or path.name == "py.typed", name


def test_collector_prometheus_and_provisioning_can_be_read() -> None:
    collector = yaml.safe_load((ROOT / "deploy" / "otel-collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= set(collector[part])
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    ours = next(job for job in jobs if job["job_name"] == "airi")
    assert ours["metrics_path"] == "/metrics"
    secret = Path(ours["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets")
    assert secret.name in SERVICES["prometheus"]["secrets"]
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/airi.yaml").read_text())[
        "providers"
    ][0]
    mounted = [volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted


def test_a_role_that_does_not_exist_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airi", "up", "--only", "gateway,databse"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "databse" in done.stderr
