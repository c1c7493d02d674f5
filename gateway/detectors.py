"""The detectors as a model: what ``/v1/moderations`` answers with when no provider's model is asked for.

Like a workflow it is an upstream served by the control plane, so that such a call walks the whole pipeline.
"""

from __future__ import annotations

from pathlib import Path

from airi.config.document import ConfigDocument
from airi.config.kinds import Metadata, Model, ModelVersion, Price, Provider, Target

MODEL = "airi/detectors"
_PROVIDER = "airi-detectors"


def with_detectors(document: ConfigDocument, control_socket: Path) -> ConfigDocument:
    """Return the document with the detectors' model, to be compiled for the data plane; the original is not changed."""
    provider = Provider(
        metadata=Metadata(name=_PROVIDER), base_url=f"unix:{control_socket}:/internal/detectors/v1"
    )
    model = Model(
        metadata=Metadata(name=MODEL),
        versions=[ModelVersion(name="current", targets=[Target(provider=_PROVIDER, model=MODEL)])],
        price=Price(input=0, output=0),
    )
    return ConfigDocument.of([provider, model, *document.resources.values()], document.version)
