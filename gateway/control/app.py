"""The composition of the control plane: services, routes and chores of one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from airi.config.validation import Validators
from airi.database import migrate, open_engine
from airi.settings import Settings
from airi.storage import CONTENT_ROOMS, prepare
from gateway.control import admin, http_errors, policy, traces
from gateway.control.ui import routes as ui
from gateway.control.background import Background, Chore, chores
from gateway.control.files import ConfigFiles
from gateway.control.services import Services, build
from observability.store import RecordStore

VERSION = "0.1.0"


def validators() -> Validators:
    """Return the rooms' deep checks by kind of resource."""
    from agents.checking import problems as workflow_problems
    from policies.documents import policy_problems

    return {"Policy": policy_problems, "Workflow": workflow_problems}


def open_services(settings: Settings) -> Services:
    """Bring the databases up to date and return the services over them."""
    import agents.migrations
    import policies.migrations

    engine = open_engine(settings.effective_database_url, full_sync=True)
    prepare(engine)
    migrate(engine, "policies", policies.migrations.MIGRATIONS)
    runs_engine = engine
    if settings.effective_runs_url != settings.effective_database_url:
        runs_engine = open_engine(settings.effective_runs_url, full_sync=True)
    prepare(runs_engine, CONTENT_ROOMS)
    migrate(runs_engine, "agents", agents.migrations.MIGRATIONS)
    return build(
        settings, engine, validators=validators(),
        record_store=RecordStore(settings.records),
    )  # fmt: skip


def create(settings: Settings) -> FastAPI:
    """Return the application; its lifespan starts and stops the chores."""
    services = open_services(settings)
    files = ConfigFiles(settings, services.config_store)
    files.take()
    background = Background([*chores(services), Chore("configuration files", 0.5, files.take)])

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        background.start()
        yield
        await asyncio.to_thread(background.stop)

    app = FastAPI(title="AIRI", version=VERSION, lifespan=lifespan, docs_url="/docs", redoc_url=None)
    http_errors.install(app)
    for part in (admin, traces, policy, ui):
        app.include_router(part.router(services))

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", "configuration_problem": files.problem or None}

    return app
