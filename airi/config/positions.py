"""Where a value stands in its file, so that every complaint can name the line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mark:
    """A value's line (from 1; that of its key in a mapping) and the marks of what is inside it."""

    line: int
    inside: dict[str, Mark] | list[Mark] | None = None

    def line_of(self, path: tuple[str | int, ...]) -> int:
        """Return the line of the deepest part of ``path`` that is in the file."""
        mark = self
        for part in path:
            found: Mark | None = None
            if isinstance(mark.inside, dict):
                found = mark.inside.get(str(part))
            elif isinstance(mark.inside, list) and isinstance(part, int) and part < len(mark.inside):
                found = mark.inside[part]
            if found is None:
                break
            mark = found
        return mark.line


@dataclass(frozen=True, slots=True)
class Where:
    """Names places of one resource: ``where("versions", 0, "name")`` is the text before ``: what is wrong``."""

    kind: str
    name: str
    file: str | None = None
    mark: Mark | None = field(default=None, repr=False)

    def __call__(self, *path: str | int) -> str:
        """Return ``file:line: Kind/name: path.to.key``, without the parts that are not known."""
        parts = []
        if self.file is not None:
            parts.append(f"{self.file}:{self.mark.line_of(path)}" if self.mark else self.file)
        if self.kind:
            parts.append(f"{self.kind}/{self.name}" if self.name else self.kind)
        if path:
            parts.append(".".join(str(part) for part in path))
        return ": ".join(parts) or "configuration"
