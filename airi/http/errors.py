"""What can go wrong between the client and an upstream.

Each error says whether the request may have reached the upstream (``reached_upstream``): a caller that must not
repeat an effect retries only when that is false. Messages name the origin, never a header, a body or a credential.
"""

from __future__ import annotations

from airi.errors import AiriError


class HttpClientError(AiriError):
    """A call to an upstream that brought no whole answer."""

    status = 502
    type = "server_error"
    code = "upstream_error"
    reached_upstream: bool = True

    @property
    def safe_to_retry(self) -> bool:
        """Whether the upstream cannot have seen the request."""
        return not self.reached_upstream


class ConnectFailed(HttpClientError):  # noqa: N818  # reads as the event it reports
    """No connection: name resolution, TCP, TLS or the proxy refused."""

    code = "upstream_connect_failed"
    reached_upstream = False


class ConnectTimeout(ConnectFailed):
    """The connection (TLS and proxy included) was not ready in time."""

    status = 504
    code = "upstream_connect_timeout"


class TooManyWaiters(HttpClientError):  # noqa: N818  # reads as the event it reports
    """Every connection is busy and the waiting line is full."""

    status = 503
    code = "upstream_pool_full"
    reached_upstream = False


class PoolTimeout(HttpClientError):  # noqa: N818  # reads as the event it reports
    """No connection became free in time."""

    status = 503
    code = "upstream_pool_timeout"
    reached_upstream = False


class PoolClosed(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The pool was closed; the caller holds an old one."""

    status = 503
    code = "upstream_pool_closed"
    reached_upstream = False


class ConnectionLost(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The upstream closed the connection before the answer began."""

    code = "upstream_closed"


class FirstByteTimeout(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The head of the answer did not come in time."""

    status = 504
    code = "upstream_first_byte_timeout"


class IdleTimeout(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The answer began, then nothing came for too long."""

    status = 504
    code = "upstream_idle_timeout"


class TotalTimeout(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The whole call took too long."""

    status = 504
    code = "upstream_total_timeout"


class Truncated(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The answer ended before its declared end."""

    code = "upstream_truncated"


class ProtocolError(HttpClientError):
    """What the upstream sent is not HTTP/1.1, or not of a form that may be trusted."""

    code = "upstream_protocol_error"


class ResponseTooLarge(HttpClientError):  # noqa: N818  # reads as the event it reports
    """The answer is larger than the caller's limit."""

    code = "upstream_response_too_large"


UpstreamTruncated = Truncated
