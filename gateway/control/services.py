"""What the control plane's routes work with; made once, in :mod:`gateway.control.app`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import redis
from sqlalchemy import Engine

from airi.config.store import ConfigStore
from airi.config.validation import Advisers, Validators
from airi.content import ContentStore
from airi.identity import Identities
from airi.keyring import KeyRing, admin_key
from airi.keys.live import LiveKeys
from airi.keys.log import KeyLog
from airi.redis import connect
from airi.secrets import Secret
from airi.settings import Settings
from airi.vault import Vault


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that routes need. ``run_service`` and ``record_store`` belong to their rooms' routers."""

    settings: Settings
    engine: Engine
    keyring: KeyRing
    redis: redis.Redis
    config_store: ConfigStore
    key_log: KeyLog
    keys: LiveKeys
    identities: Identities
    content: ContentStore
    admin_key: Secret = field(repr=False)
    run_service: Any = None
    record_store: Any = None


def build(
    settings: Settings,
    engine: Engine,
    *,
    validators: Validators | None = None,
    advisers: Advisers | None = None,
    run_service: Any = None,
    record_store: Any = None,
) -> Services:
    """Return the services over an already migrated ``engine``."""
    ring = KeyRing.open_for(settings)
    client = connect(settings.effective_redis_url)
    key_log = KeyLog(engine, client, ring)
    return Services(
        settings=settings,
        engine=engine,
        keyring=ring,
        redis=client,
        config_store=ConfigStore(
            engine, client, validators=validators, advisers=advisers, sealing=Vault(engine, ring)
        ),
        key_log=key_log,
        keys=LiveKeys(key_log),
        identities=Identities(),
        content=ContentStore(engine, ring),
        admin_key=admin_key(settings),
        run_service=run_service,
        record_store=record_store,
    )
