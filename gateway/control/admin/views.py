"""What the admin API answers with, shared by its routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from airi.config.commit import ApplyResult
from airi.config.diff import ResourceDiff
from airi.config.state import Stored, VersionInfo, body_of


def listing(items: Sequence[Any], *, has_more: bool = False) -> dict[str, Any]:
    """Return a list in OpenAI's form."""
    return {"object": "list", "data": list(items), "has_more": has_more}


def resource_view(stored: Stored) -> dict[str, Any]:
    """Return a resource as written, with its manager, the version of its last change and its ETag."""
    return {
        "object": stored.resource.kind.lower(),
        "name": stored.resource.metadata.name,
        "manager": stored.manager,
        "version": stored.version,
        "etag": stored.digest,
        "resource": body_of(stored.resource),
    }


def version_view(info: VersionInfo) -> dict[str, Any]:
    """Return a version without its content."""
    return {"object": "snapshot", **asdict(info)}


def diff_view(diff: ResourceDiff) -> dict[str, Any]:
    """Return what happened to a resource, as data and as a unified diff of its YAML."""
    return {**asdict(diff), "text": diff.text()}


def result_view(result: ApplyResult) -> dict[str, Any]:
    """Return what a write did."""
    fields = asdict(result)
    return {"object": "apply_result", **fields, "diff": [diff_view(diff) for diff in result.diff]}
