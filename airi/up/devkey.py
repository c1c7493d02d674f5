"""``python -m airi.up.devkey``: makes the development tenant's key and writes it to ``AIRI_HOME/dev.key``.

A process of its own, because it needs the database and the supervisor should stay small.
"""

from __future__ import annotations

import sys

from airi.database import open_engine
from airi.keyring import KeyRing
from airi.keys import KeyLog, NewKey
from airi.redis import connect
from airi.settings import Settings
from airi.storage import prepare
from airi.up.adopt import DEV_TENANT
from airi.up.home import write_private

DEV_KEY_FILE = "dev.key"


def main() -> int:
    """Issue a key that may do everything within its tenant; gateways learn of it by the notice that this sends."""
    settings = Settings.from_environment()
    engine = open_engine(settings.effective_database_url, full_sync=True)
    client = connect(settings.effective_redis_url)
    try:
        prepare(engine)
        log = KeyLog(engine, client, KeyRing.open_for(settings))
        wanted = NewKey(tenant=DEV_TENANT, role="org_admin", name="development")
        _, token = log.create(wanted, actor="airi up")
        write_private(settings.home / DEV_KEY_FILE, f"{token.reveal()}\n")
    finally:
        client.close()
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
