"""Signature Version 4 of Amazon Web Services, for Bedrock.

Signed here, at the transport, the keys never reach litellm: it would look for others in the environment, in files and on
the network, and mix them with ours.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote

from routing.call import Header
from routing.specs import AwsKeys

_SERVICE = "bedrock"
_ALGORITHM = "AWS4-HMAC-SHA256"


def signed(
    keys: AwsKeys, host: bytes, target: bytes, body: bytes, now: datetime | None = None
) -> list[Header]:
    """Return the headers that a JSON POST to ``target`` must carry besides its own."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{keys.region}/{_SERVICE}/aws4_request"
    headers = [(b"content-type", b"application/json"), (b"host", host), (b"x-amz-date", stamp.encode())]
    if keys.session_token is not None:
        headers.append((b"x-amz-security-token", keys.session_token.reveal().encode("latin-1")))
    names = ";".join(name.decode() for name, _ in headers)
    path, _, query = target.decode("ascii").partition("?")
    lines = "".join(f"{name.decode()}:{value.decode('latin-1').strip()}\n" for name, value in headers)
    # The path is encoded once more than on the wire: only S3 does otherwise.
    request = f"POST\n{quote(path, safe='/~')}\n{query}\n{lines}\n{names}\n{sha256(body).hexdigest()}"
    digest = sha256(request.encode("latin-1")).hexdigest()
    key = b"AWS4" + keys.secret_access_key.reveal().encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}".encode(), "sha256").hex()
    credential = f"{keys.access_key_id.reveal()}/{scope}"
    authorization = f"{_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return [header for header in headers if header[0] != b"host"] + [
        (b"authorization", authorization.encode("latin-1"))
    ]
