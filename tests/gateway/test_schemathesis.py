"""The published schema against the running tree: model routes, and all that can be read of the control plane."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from gateway.operations import OPERATIONS
from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER, USAGE, delta, finish

pytestmark = pytest.mark.integration
_BUDGET = settings(
    max_examples=5, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
_CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture
def schema(door: Door) -> Any:
    """The schema as a client finds it, each generated body naming a model that answers at once."""
    door.recorder.answer = lambda body: (
        [delta(content="Yes."), finish("stop"), USAGE, b"[DONE]"] if body.get("stream") else ANSWER
    )
    found = schemathesis.openapi.from_url(f"{door.live.base}/openapi.json")
    model = {"const": "rec/echo"}
    for path in found.raw_schema["paths"].values():
        content = path.get("post", {}).get("requestBody", {}).get("content", {})
        fields = content.get("application/json", {}).get("schema", {}).get("properties", {})
        if "minLength" in fields.get("model", {}):
            fields["model"] = model
    return found


def operations(schema: Any, **chosen: Any) -> list[Any]:
    """The operations of the schema that ``chosen`` includes."""
    return [found.ok() for found in schema.include(**chosen).get_all_operations()]


def drive(operation: Any, key: str, judged: list[Any]) -> None:
    """Send a bounded number of generated requests to one operation and judge the answers."""

    @_BUDGET
    @given(operation.as_strategy())
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers={"authorization": f"Bearer {key}"}, checks=judged)

    check()


def test_model_routes(schema: Any, door: Door) -> None:
    found = operations(schema, tag="models", method="POST")
    assert {operation.path for operation in found} >= set(OPERATIONS)
    for operation in found:
        drive(operation, door.live.key, _CHECKS if operation.path in OPERATIONS else _CHECKS[:1])


def test_reads_of_the_control_plane(schema: Any, door: Door) -> None:
    found = operations(schema, method="GET")
    assert len(found) > 20
    for operation in found:
        if not operation.path.endswith("/events"):  # an endless stream
            drive(operation, door.live.admin_key, _CHECKS[:1])
