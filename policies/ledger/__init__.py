"""The ledger: what every call cost, exactly once, in SQL.

``settle.lua`` and the reaper append entries to a Redis stream in the step that changes the counters; the consumer moves
them here and removes from the stream only what SQL has committed. The invariant, checked by :func:`verify` at any time
and under load: for every budget and window, Redis' ``spent`` is the sum of the entries charged to it (SQL and stream), and
``held`` the sum of the open reservations' holds, to the micro-dollar.
"""

from policies.ledger.consumer import LedgerConsumer
from policies.ledger.usage import UsageRow, usage
from policies.ledger.verify import Difference, Report, verify

__all__ = ["Difference", "LedgerConsumer", "Report", "UsageRow", "usage", "verify"]
