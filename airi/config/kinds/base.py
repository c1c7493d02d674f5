"""What every kind of resource is made of."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

API_VERSION: Final = "airi/v1alpha1"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/:@-]{0,126}[A-Za-z0-9])?$")]
SecretReference = Annotated[
    str, Field(pattern=r"^\$\{(env:[A-Za-z_][A-Za-z0-9_]*|file:[^}]+|sealed:[^}]+)\}$")
]
"""``${env:NAME}``, ``${file:PATH}`` or, written by the store itself, ``${sealed:…}``; never a plain secret."""


class Strict(BaseModel):
    """A model that refuses keys it does not know and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Metadata(Strict):
    """Who a resource is. ``name`` is unique within its kind."""

    name: Name
    labels: dict[str, str] = {}
    description: str = ""


class Resource(Strict):
    """What all kinds share."""

    api_version: Literal["airi/v1alpha1"] = Field(API_VERSION, alias="apiVersion")
    kind: str
    metadata: Metadata
