"""The composition of the control plane: services, routes and chores of one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from sqlalchemy import Engine

import agents.migrations
import agents.service
import policies.migrations
from agents.advice import unknown_tools
from agents.checking import problems as workflow_problems
from airi.config.validation import Advisers, Validators
from airi.database import migrate, open_engine
from airi.settings import Settings
from airi.storage import CONTENT_ROOMS, prepare, reseal
from gateway.control import (
    admin,
    detectors,
    http_errors,
    model_routes,
    openapi,
    policy,
    runs,
    traces,
    workflow_model,
)
from gateway.control.background import Background, Chore, chores
from gateway.control.files import ConfigFiles
from gateway.control.routing import add
from gateway.control.services import Services, build
from gateway.control.ui import routes as ui
from gateway.control.unique_keys import UniqueKeys
from observability.emitter import Emitter
from observability.store import RecordStore
from policies.documents import policy_problems

VERSION = "0.1.0"
VALIDATORS: Validators = {"Policy": policy_problems, "Workflow": workflow_problems}
"""The rooms' deep checks by kind of resource."""
ADVISERS: Advisers = {"Workflow": unknown_tools}
"""The rooms' warnings by kind of resource."""


def open_databases(settings: Settings) -> tuple[Engine, Engine]:
    """Return AIRI's database and the runs database (the same one when AIRI_DATABASE_URL names it), tables up to date."""
    engine = open_engine(settings.effective_database_url, full_sync=True)
    prepare(engine)
    migrate(engine, "policies", policies.migrations.MIGRATIONS)
    runs_engine = engine
    if settings.effective_runs_url != settings.effective_database_url:
        runs_engine = open_engine(settings.effective_runs_url, full_sync=True)
        prepare(runs_engine, CONTENT_ROOMS)
    migrate(runs_engine, "agents", agents.migrations.MIGRATIONS)
    return engine, runs_engine


def open_services(settings: Settings, emitter: Emitter) -> Services:
    """Return the services over databases that are up to date."""
    engine, runs_engine = open_databases(settings)
    services = build(
        settings,
        engine,
        validators=VALIDATORS,
        advisers=ADVISERS,
        record_store=RecordStore(settings.records),
    )
    reseal(
        services.keyring, *{engine, runs_engine}
    )  # after a rotation of AIRI_SECRET_KEY the old key may then go
    service = agents.service.build(settings, services.keyring, runs_engine, services.config_store, emitter)
    return replace(services, run_service=service)


def create(settings: Settings) -> FastAPI:
    """Return the application; its lifespan starts and stops the chores."""
    emitter = Emitter(settings.writer_socket, "control")
    services = open_services(settings, emitter)
    files = ConfigFiles(settings, services.config_store)
    files.take()
    background = Background([*chores(services), Chore("configuration files", 0.5, files.take)])

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await emitter.start()
        background.start()
        services.run_service.start_background()
        yield
        await asyncio.to_thread(services.run_service.close)
        await asyncio.to_thread(background.stop)
        await emitter.close()

    app = FastAPI(title="AIRI", version=VERSION, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    http_errors.install(app)
    app.add_middleware(UniqueKeys)
    parts = (admin, traces, policy, runs, workflow_model, model_routes, detectors, ui)
    add(app, *(part.router(services) for part in parts))
    openapi.describe(app)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "configuration_problem": files.problem or None}

    return app
