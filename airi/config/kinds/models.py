"""Models: the aliases that callers name, their versions, and what these cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from airi.config.kinds.base import Name, Resource, Strict
from airi.config.units import MOST, Milliseconds, UsdMicros


class Price(Strict):
    """Dollars per million tokens."""

    input: UsdMicros
    output: UsdMicros
    cached_input: UsdMicros | None = None


class Target(Strict):
    """One place that can serve a version: a pool or a provider, and the model's name there."""

    pool: Name | None = None
    provider: Name | None = None
    model: str
    weight: int = Field(100, ge=0, le=MOST)
    """Share of calls relative to the version's other targets; 0 takes none."""
    price: Price | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Target:
        if (self.pool is None) == (self.provider is None):
            raise ValueError("give exactly one of 'pool' and 'provider'")
        return self


class ModelContract(Strict):
    """What callers may rely on; a fallback is taken only within it. ``None``: not known, not refused."""

    context_window: int | None = Field(None, ge=1, le=MOST)
    """Tokens of prompt and answer together: a fallback with room for less than the prompt (as estimated) is passed over."""
    max_output_tokens: int = Field(4_096, ge=1, le=MOST)
    """The most that an answer may have where the caller does not say: what limits and budgets hold, and insert."""
    tools: bool = True
    json_schema: bool = True
    vision: bool = False
    embeddings: bool = False


class ModelVersion(Strict):
    """A version: targets that give equal answers."""

    name: Name
    targets: list[Target] = Field(min_length=1)


class Retries(Strict):
    """Attempts before the first byte, over all targets; back-off with full jitter."""

    max_attempts: int = Field(3, ge=1, le=10)
    initial: Milliseconds = 100
    factor: float = Field(2.0, ge=1)
    max: Milliseconds = 5_000


class Model(Resource):
    """An alias that callers name, its versions and where each is served."""

    kind: Literal["Model"] = "Model"
    versions: list[ModelVersion] = Field(min_length=1)
    active: Name | None = None
    """The version that serves; the last one when not given."""
    fallbacks: list[Name] = []
    """Other aliases, tried in order when every target of this one fails before the first byte."""
    price: Price | None = None
    """For targets without their own; unpriced targets are looked up in the price map by model name."""
    contract: ModelContract = ModelContract()
    retries: Retries = Retries()
    drop_params: bool = False
    """Drop fields that the target cannot take instead of refusing the call."""

    @model_validator(mode="after")
    def _active_exists(self) -> Model:
        names = [version.name for version in self.versions]
        if len(set(names)) != len(names):
            raise ValueError("two versions have the same name")
        if self.active is not None and self.active not in names:
            raise ValueError(f"active version {self.active!r} is not among {names}")
        return self

    @property
    def active_version(self) -> ModelVersion:
        """The version new calls are served by."""
        wanted = self.active or self.versions[-1].name
        return next(version for version in self.versions if version.name == wanted)
