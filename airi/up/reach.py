"""Asking the started parts whether they serve: the gateway over its own door, the control plane over its socket."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from airi.settings import Settings

_TIMEOUT_S = 2.0
_ANSWER_LIMIT = 4 << 20


def ask(base_url: str, path: str, key: str | None = None) -> tuple[int, dict[str, Any]]:
    """GET a path of the gateway; return the status and the JSON object (empty when there is none), 0 when unreachable.

    The certificate is not verified: the address is this machine's own, and a private certificate is common there.
    """
    parts = urlsplit(base_url)
    assert parts.hostname is not None
    if parts.scheme == "https":
        context = ssl._create_unverified_context()  # noqa: S323  # see above
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
    return _get(connection, path, {"Authorization": f"Bearer {key}"} if key else {})


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("control", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


def refused_configuration(settings: Settings) -> str:
    """Return what the control plane found wrong with the files of AIRI_CONFIG, line by line; nothing when all is well."""
    _, body = _get(_UnixConnection(str(settings.control_socket)), "/healthz", {})
    return str(body.get("configuration_problem") or "")


def _get(
    connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = json.loads(response.read(_ANSWER_LIMIT) or b"{}")
    except (OSError, http.client.HTTPException):
        return 0, {}
    except ValueError:
        return response.status, {}
    finally:
        connection.close()
    return response.status, body if isinstance(body, dict) else {}
