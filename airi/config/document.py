"""The configuration document: every resource that serves, immutable and named by its content's hash."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from airi.config.kinds import API_VERSION, KINDS, AnyResource

R = TypeVar("R", bound=AnyResource)


@dataclass(frozen=True)
class ConfigDocument:
    """An immutable set of resources. ``version`` is the store's counter, ``digest`` names the content."""

    resources: dict[tuple[str, str], AnyResource]
    version: int = 0
    raw: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)
    known_digest: str | None = field(default=None, repr=False, compare=False)
    """The digest as the store knows it, so that a process that swaps snapshots need not compute it."""

    @classmethod
    def of(cls, resources: Iterable[AnyResource], version: int = 0) -> ConfigDocument:
        """Make a document of resources; a later one of the same kind and name replaces an earlier one."""
        return cls({(r.kind, r.metadata.name): r for r in resources}, version)

    def all(self, kind: type[R]) -> Iterator[R]:
        """Yield the resources of one kind in order of name."""
        for resource in self._by_kind.get(kind.model_fields["kind"].default, ()):
            assert isinstance(resource, kind)
            yield resource

    def same(self, other: ConfigDocument, *kinds: str) -> bool:
        """Tell, quickly, that two documents hold the very same resources of these kinds; ``False`` may err."""
        return all(
            len(ours := self._by_kind.get(kind, ())) == len(theirs := other._by_kind.get(kind, ()))
            and all(map(operator.is_, ours, theirs))
            for kind in kinds
        )

    @cached_property
    def _by_kind(self) -> dict[str, list[AnyResource]]:
        found: dict[str, list[AnyResource]] = {}
        for key in sorted(self.resources):
            found.setdefault(key[0], []).append(self.resources[key])
        return found

    def get(self, kind: type[R], name: str) -> R | None:
        """Return one resource, or ``None``."""
        resource = self.resources.get((kind.model_fields["kind"].default, name))
        assert resource is None or isinstance(resource, kind)
        return resource

    def dump(self) -> list[dict[str, Any]]:
        """Return plain data, in order of kind and name, as :meth:`load` takes it."""
        return [
            self.resources[key].model_dump(mode="json", by_alias=True, exclude_defaults=False)
            for key in sorted(self.resources)
        ]

    @classmethod
    def load(cls, data: Iterable[dict[str, Any]], version: int = 0) -> ConfigDocument:
        """Make a document of what :meth:`dump` returned."""
        return cls.of((KINDS[item["kind"]].model_validate(item) for item in data), version)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all resources' names and digests (32 hex digits)."""
        if self.known_digest is not None:
            return self.known_digest
        return content_digest({key: encode_body(resource)[1] for key, resource in self.resources.items()})


def body_of(resource: AnyResource) -> dict[str, Any]:
    """Return plain data as it was written: what is not given is not filled in."""
    body = resource.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return {"apiVersion": API_VERSION, "kind": resource.kind, **body}


def encode_body(resource: AnyResource) -> tuple[str, str]:
    """Return the canonical JSON of a resource and its digest (32 hex digits)."""
    data = msgspec.json.encode(body_of(resource), order="deterministic")
    return data.decode(), hashlib.sha256(data).hexdigest()[:32]


def content_digest(digests: Mapping[tuple[str, str], str]) -> str:
    """Return the digest of a document from those of its resources: a write hashes only what it changes."""
    lines = "".join(f"{kind}/{name} {digests[kind, name]}\n" for kind, name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:32]
