"""Workflows as models: ``workflow/NAME`` is an upstream like any other, served by the control plane.

Such a call walks the whole pipeline — requests a minute, policies, record — but holds neither money nor a place among concurrent
calls: its own model calls are admitted one by one, and must never wait for a slot that it holds. So it costs nothing itself: what
its run has spent stands in the ledger already, and is told only to the run that asked for it, whose own budget it counts against.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airi.config.document import ConfigDocument
from airi.config.kinds import (
    Metadata,
    Model,
    ModelContract,
    ModelVersion,
    Price,
    Provider,
    Retries,
    Target,
    Timeouts,
    Workflow,
)

if TYPE_CHECKING:
    from airi.errors import AiriError
    from routing.answer import Answer

PREFIX = "workflow/"
_PROVIDER = "airi-workflows"
_COST = b"x-airi-cost-usd-micros"
_HOUR_MS = 3_600_000
_TIMEOUTS = Timeouts(first_byte=_HOUR_MS, idle=_HOUR_MS, total=24 * _HOUR_MS)


def with_workflows(document: ConfigDocument, control_socket: Path) -> ConfigDocument:
    """Return the document with a model for each workflow, to be compiled for the data plane; the original is not changed."""
    names = [workflow.metadata.name for workflow in document.all(Workflow)]
    if not names:
        return document
    provider = Provider(
        metadata=Metadata(name=_PROVIDER), base_url=f"unix:{control_socket}:/internal/workflow-model/v1",
        timeouts=_TIMEOUTS, max_connections=10_000, max_concurrent=10_000,
    )  # fmt: skip
    models = [
        Model(
            metadata=Metadata(name=PREFIX + name),
            versions=[
                ModelVersion(name="current", targets=[Target(provider=_PROVIDER, model=PREFIX + name)])
            ],
            price=Price(input=0, output=0),
            # A run that was started must not be started again: whoever wants that sends an idempotency key.
            retries=Retries(max_attempts=1),
            contract=ModelContract(max_output_tokens=1_000_000),
        )
        for name in names
    ]
    return ConfigDocument.of([*document.resources.values(), provider, *models], document.version)


def ran_and_failed(answer: Answer, error: AiriError) -> bool:
    """Whether a workflow's stream tells that its run failed: the place that ran it is not to blame."""
    return answer.route.alias.startswith(PREFIX) and error.code == "upstream_stream_error"


def spent_inside(answer: Answer | None) -> int:
    """Return what the run behind a workflow's answer has spent, in micro-dollars; 0 for any other model's answer."""
    if answer is None or not answer.route.alias.startswith(PREFIX):
        return 0
    said = next((value for name, value in answer.headers if name == _COST), b"")
    return int(said) if said.isdigit() else 0
