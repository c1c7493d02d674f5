"""Asking the started gateway, over its own door, whether it serves."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

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
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        body = json.loads(response.read(_ANSWER_LIMIT) or b"{}")
    except (OSError, http.client.HTTPException):
        return 0, {}
    except ValueError:
        return response.status, {}
    finally:
        connection.close()
    return response.status, body if isinstance(body, dict) else {}
