"""Money and tokens of a run: reserved before each model call, so that what is granted never exceeds what is left.

The engine does not know prices; the gateway does. So each call is granted a share of what is left (at least four
times the dearest call so far, at least a quarter of the rest), the grant travels in the call's token, and the
gateway refuses what would cost more. A refused call asks for more; when it holds everything that is left and is
still refused, the budget is used up. The sum of all grants and of all that was spent never exceeds the budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agents.errors import StepFailed
from agents.store import RunTransaction

_SHARE = 4
_LARGEST = 4


@dataclass(frozen=True, slots=True)
class Need:
    """What a call may use: tokens (prompt estimate and ``max_tokens``) and, if the step has a limit, money."""

    prompt_tokens: int
    output_tokens: int
    at_least_usd_micros: int = 0
    step_usd_micros: int | None = None
    """What is left of the step's own budget."""
    step_tokens: int | None = None

    def more_than(self, grant: Grant) -> Need:
        """The need of a call that was refused with ``grant``."""
        return replace(self, at_least_usd_micros=max(1, (grant.usd_micros or 0) * 4))


@dataclass(frozen=True, slots=True)
class Grant:
    """What a call may use. ``usd_micros`` is ``None`` without a budget."""

    usd_micros: int | None = None
    tokens: int = 0
    output_tokens: int | None = None
    """``max_tokens`` that the budget of tokens allows, when there is one."""
    everything: bool = False
    """There is no more to be had."""


class StillHeld(Exception):  # noqa: N818  # a state, not a fault
    """What is left is held by other calls of the run; some of it may come back."""


def reserve(tx: RunTransaction, need: Need | None) -> Grant:
    """Hold a share of what is left of the run's budget; :class:`StepFailed` of class ``budget`` when nothing is.

    Raises :class:`StillHeld` when it depends on calls that have not ended.
    """
    if need is None:
        return Grant()
    usd, everything = _money(tx, need)
    tokens, output_tokens = _tokens(tx, need)
    tx.set(held_usd_micros=tx.get("held_usd_micros") + (usd or 0), held_tokens=tx.get("held_tokens") + tokens)
    return Grant(usd, tokens, output_tokens, everything)


def _money(tx: RunTransaction, need: Need) -> tuple[int | None, bool]:
    """The grant in micro-dollars and whether it is all that can be had."""
    budget, step_left = tx.run.budget_usd_micros, need.step_usd_micros
    if step_left is not None and step_left <= 0:
        raise StepFailed("budget", "the step's budget (cost_usd) is used up")
    if budget is None:
        return step_left, True
    held = tx.get("held_usd_micros")
    left = budget - tx.get("spent_usd_micros") - held
    if left <= 0 or (left < need.at_least_usd_micros and held):
        if held:
            raise StillHeld
        raise StepFailed("budget", "the run's budget (cost_usd) is used up")
    grant = min(
        left, max(need.at_least_usd_micros, _LARGEST * tx.get("largest_usd_micros"), left // _SHARE, 1)
    )
    if step_left is not None and step_left <= grant:
        return step_left, True
    return grant, grant == left and not held


def _tokens(tx: RunTransaction, need: Need) -> tuple[int, int | None]:
    """The tokens to hold and, when they are limited, how many of them may be output."""
    budget = tx.run.budget_tokens
    lefts = []
    held = tx.get("held_tokens")
    if budget is not None:
        lefts.append(budget - tx.get("spent_tokens") - held)
    if need.step_tokens is not None:
        lefts.append(need.step_tokens)
    wanted = need.prompt_tokens + need.output_tokens
    if not lefts or wanted <= min(lefts):
        return wanted, None
    left = min(lefts)
    if budget is not None and held and lefts[0] < wanted:
        raise StillHeld
    if left <= need.prompt_tokens:
        raise StepFailed("budget", "the budget (tokens) does not pay for another call")
    return left, left - need.prompt_tokens
