"""Organisations: their teams, limits, budgets and share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from airi.config.kinds.base import Name, Resource, Strict
from airi.config.kinds.identity import Identity
from airi.config.units import MOST, UsdMicros


class Limits(Strict):
    """Rates and concurrency of one scope; ``None`` is no limit."""

    requests_per_minute: int | None = Field(None, ge=1, le=MOST)
    tokens_per_minute: int | None = Field(None, ge=1, le=MOST)
    concurrent_calls: int | None = Field(None, ge=1, le=MOST)


class Budget(Strict):
    """Money of one scope in a calendar window (UTC). ``hard`` cannot be overspent; ``soft`` states its bound."""

    name: Name
    usd: UsdMicros
    window: Literal["minute", "hour", "day", "week", "month", "total"] = "month"
    mode: Literal["hard", "soft"] = "hard"


class ModelLimits(Limits):
    """Limits of one model within its tenant."""

    budgets: list[Budget] = []


class Team(Strict):
    """A team within an organisation."""

    name: Name
    limits: Limits = Limits()
    budgets: list[Budget] = []
    models: list[str] = ["*"]


class RecordOptions(Strict):
    """What of a call's content is kept. ``masked``: after the detectors have masked it."""

    content: Literal["off", "masked"] = "off"


class Tenant(Resource):
    """An organisation: its teams, its limits, its share of full pools."""

    kind: Literal["Tenant"] = "Tenant"
    teams: list[Team] = []
    limits: Limits = Limits()
    budgets: list[Budget] = []
    user_limits: Limits = Limits()
    """For each end user (the request's ``user`` field) on its own."""
    model_limits: dict[str, ModelLimits] = {}
    models: list[str] = ["*"]
    """Aliases (with ``*``) that the tenant may call."""
    weight: float = Field(1.0, gt=0)
    """Share of a full pool relative to other tenants."""
    record: RecordOptions = RecordOptions()
    identity: Identity | None = None
    """Tokens of the tenant's own sign-in that are taken like keys."""
