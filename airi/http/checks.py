"""What a request's head must be to be trusted. Each check raises :class:`Refused` inside the parser's callback."""

from __future__ import annotations

import re
from typing import Final

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# Two values of these would let two readers of one request disagree about it.
_SINGLE: Final = frozenset(
    {b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding", b"expect"}
)


class Refused(Exception):  # noqa: N818  # leaves a parser's callback, never this package
    """The request under way is answered with ``status``, and its connection ends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def first_values(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return name → first value; names that must not be given twice are refused."""
    index: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in index:
            index[name] = value
        elif name in _SINGLE:
            raise Refused(400, f"The header {name.decode()} is given twice.")
    return index


def is_http11(version: str) -> bool:
    """Whether it is HTTP/1.1 rather than 1.0; anything else is refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    return version == "1.1"


def check_host(host: bytes | None, http11: bool) -> None:
    """Refuse a missing host (RFC 9112 §3.2) and one that is more than a host and a port."""
    if host is None:
        if http11:
            raise Refused(400, "The header host is missing.")
    elif not _HOST.fullmatch(host):
        raise Refused(400, "The header host is not a host.")


def check_framing(index: dict[bytes, bytes], most_bytes: int) -> None:
    """Refuse a body that is announced too large or coded in a way that is not understood."""
    length = index.get(b"content-length")
    if length is not None and int(length) > most_bytes:
        raise Refused(413, f"The request's body is larger than {most_bytes} bytes.")
    coding = index.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise Refused(501, "Of transfer encodings only chunked is understood.")


def wants_continue(index: dict[bytes, bytes]) -> bool:
    """Whether the client waits for ``100 Continue`` before it sends a body."""
    if index[b"expect"].lower() != b"100-continue":
        raise Refused(417, "Of expectations only 100-continue is understood.")
    length = index.get(b"content-length")
    return b"transfer-encoding" in index or (length is not None and int(length) > 0)


def origin_form(url: bytes) -> bytes:
    """Return path and query of an absolute target (RFC 9112 §3.2.2); ``*`` stays as it is."""
    if url == b"*":
        return url
    scheme, separator, rest = url.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise Refused(400, "The request's target is not understood.")
    _, slash, path = rest.partition(b"/")
    return slash + path if slash else b"/"
