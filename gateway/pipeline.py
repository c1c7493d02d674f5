"""The way of a call: every stage, in order, on one screen.

Each stage lives in ``gateway/stages/``; it hands one room narrow inputs, gets a decision back and writes it down.
"""

from __future__ import annotations

import asyncio

from airi.errors import AiriError
from airi.http.server import Request
from gateway.errors import OverloadedError
from gateway.exchange import Exchange
from gateway.operations import Operation, too_deep
from gateway.runtime import Runtime
from gateway.stages.admit import admit
from gateway.stages.authenticate import authenticate
from gateway.stages.deliver import deliver, deliver_error, deliver_replay
from gateway.stages.prompt import apply_prompt_policies
from gateway.stages.record import record
from gateway.stages.route import route
from gateway.stages.settle import settle
from gateway.stages.understand import understand, understand_dialect


class Pipeline:
    """Walks calls through the stages with what this process holds."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def run(self, request: Request, operation: Operation) -> None:
        """Serve one call. A client that leaves cancels this coroutine: what was used is settled all the same."""
        runtime = self._runtime
        exchange = Exchange(request, operation, runtime.snapshot)
        runtime.in_flight[exchange.span_id] = exchange
        try:
            await self._walk(runtime, exchange)
        except AiriError as error:
            deliver_error(exchange, error)
        except RecursionError:
            # The body could be read, but not be looked at or written again from where the call now is.
            deliver_error(exchange, too_deep())
        except asyncio.CancelledError:
            exchange.status, exchange.error_type, exchange.error_code = (
                499,
                "cancelled",
                "client_disconnected",
            )
            raise
        except Exception:  # a fault of ours: the record says so, the server logs and answers it
            exchange.status, exchange.error_type, exchange.error_code = 500, "server_error", "internal_error"
            raise
        finally:
            runtime.in_flight.pop(exchange.span_id, None)
            settle(runtime, exchange)
            record(runtime, exchange)

    @staticmethod
    async def _walk(runtime: Runtime, exchange: Exchange) -> None:
        if len(runtime.in_flight) > runtime.max_in_flight:
            raise OverloadedError(
                "This gateway process is serving all the calls it takes.", retry_after_ms=1_000
            )
        await authenticate(runtime, exchange)
        front = exchange.operation.front
        if front is None:
            understand(exchange)
        else:
            await understand_dialect(runtime, exchange, front)
        replay = await admit(runtime, exchange)
        if replay is not None:
            await deliver_replay(runtime, exchange, replay)
            return
        apply_prompt_policies(exchange)
        await route(runtime, exchange)
        await deliver(runtime, exchange)
