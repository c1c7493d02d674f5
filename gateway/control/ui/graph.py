"""A workflow's graph laid out in Python and drawn as SVG: layers from left to right, crossings reduced by barycentres.

Source of the method: Sugiyama, Tagawa, Toda (1981), without its last phase; a workflow has tens of steps, not
thousands. An edge over several layers is led through a thin place in each, so that it passes between the boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BOX_WIDTH, BOX_HEIGHT = 176, 54
_GAP_X, _GAP_Y = 64, 22
_THIN = 14
_MARGIN = 12
_SWEEPS = 6
_MOST_NODES = 300


@dataclass(frozen=True, slots=True)
class Node:
    """A step: what it waits for, and what its box says."""

    id: str
    needs: tuple[str, ...] = ()
    state: str = ""
    kind: str = ""
    note: str = ""
    href: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A node with its place."""

    node: Node
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Edge:
    """A path from one box to another, as SVG's ``d``; ``done`` when its beginning has ended well."""

    source: str
    target: str
    d: str
    done: bool


@dataclass(frozen=True, slots=True)
class Drawing:
    """Everything that the template draws."""

    width: int
    height: int
    boxes: list[Box]
    edges: list[Edge]


class _Layers:
    """Nodes and thin places by layer. A place is a node's id or ``(source, target, layer)``."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self.depth = _depths(nodes)
        self.layers: list[list[object]] = [[] for _ in range(max(self.depth.values(), default=-1) + 1)]
        for node in nodes:
            self.layers[self.depth[node.id]].append(node.id)
        self.chains: dict[tuple[str, str], list[object]] = {}
        for node in nodes:
            for source in node.needs:
                if source in self.nodes and self.depth[source] < self.depth[node.id]:
                    self.chains[source, node.id] = self._chain(source, node.id)
        self.before: dict[object, list[object]] = {}
        self.after: dict[object, list[object]] = {}
        for chain in self.chains.values():
            for one, other in pairwise(chain):
                self.after.setdefault(one, []).append(other)
                self.before.setdefault(other, []).append(one)

    def _chain(self, source: str, target: str) -> list[object]:
        chain: list[object] = [source]
        for layer in range(self.depth[source] + 1, self.depth[target]):
            place = (source, target, layer)
            self.layers[layer].append(place)
            chain.append(place)
        return [*chain, target]

    def order(self) -> None:
        """Sweep forth and back, putting each place at the mean of its neighbours' positions."""
        for sweep in range(_SWEEPS):
            forth = sweep % 2 == 0
            neighbours = self.before if forth else self.after
            for layer in self.layers if forth else reversed(self.layers):
                at = {place: index for row in self.layers for index, place in enumerate(row)}
                means = {}
                for index, place in enumerate(layer):
                    near = neighbours.get(place)
                    means[place] = sum(at[other] for other in near) / len(near) if near else index
                layer.sort(key=means.__getitem__)


def _depths(nodes: Sequence[Node]) -> dict[str, int]:
    """Return each node's layer: the longest way to it. What needs itself in a circle stays where it was met."""
    needs = {node.id: node.needs for node in nodes}
    depth: dict[str, int] = {}

    def of(name: str, above: frozenset[str]) -> int:
        if name not in depth:
            inside = above | {name}
            depth[name] = max(
                (of(n, inside) + 1 for n in needs[name] if n in needs and n not in inside), default=0
            )
        return depth[name]

    for node in nodes:
        of(node.id, frozenset())
    return depth


def draw(nodes: Sequence[Node], done: frozenset[str]) -> Drawing:
    """Lay out up to 300 nodes; ``done`` names those that ended well."""
    layers = _Layers(nodes[:_MOST_NODES])
    layers.order()
    heights = [sum(_height(place) + _GAP_Y for place in layer) - _GAP_Y for layer in layers.layers]
    tallest = max(heights, default=0)
    middle: dict[object, tuple[int, int]] = {}
    boxes: list[Box] = []
    for index, layer in enumerate(layers.layers):
        x = _MARGIN + index * (BOX_WIDTH + _GAP_X)
        y = _MARGIN + (tallest - heights[index]) // 2
        for place in layer:
            middle[place] = (x, y + _height(place) // 2)
            if isinstance(place, str):
                boxes.append(Box(layers.nodes[place], x, y))
            y += _height(place) + _GAP_Y
    edges = [
        Edge(source, target, _path(chain, middle), source in done)
        for (source, target), chain in layers.chains.items()
    ]
    width = len(layers.layers) * (BOX_WIDTH + _GAP_X) - _GAP_X + 2 * _MARGIN
    return Drawing(max(width, 2 * _MARGIN), tallest + 2 * _MARGIN, boxes, edges)


def _height(place: object) -> int:
    return BOX_HEIGHT if isinstance(place, str) else _THIN


def _path(chain: list[object], middle: dict[object, tuple[int, int]]) -> str:
    x, y = middle[chain[0]]
    x += BOX_WIDTH
    parts = [f"M{x} {y}"]
    for place in chain[1:]:
        to_x, to_y = middle[place]
        half = (to_x - x) // 2
        parts.append(f"C{x + half} {y} {to_x - half} {to_y} {to_x} {to_y}")
        x, y = to_x, to_y
        if not isinstance(place, str):
            x += BOX_WIDTH
            parts.append(f"H{x}")
    return "".join(parts)
