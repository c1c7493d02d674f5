"""Effects on the outside: intent → call with a stable key → result.

The key is ``run:path:iteration`` and never holds the attempt, so the other side can recognise a repetition. What
was recorded as done is never called again. An intent without a result is ambiguous: the class of the effect says
whether it may be repeated (``idempotent``, ``keyed``), must be looked up first (``reconcilable``), or is put up for
a person's review (``unsafe``).

Within the intent's transaction the run must still start effects, and money and tokens are reserved from what is
left of its budget, so that branches that race for one budget cannot overspend it together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row, insert, update

from agents import faults
from agents.budgets import Grant, Need, StillHeld, reserve
from agents.definition import EffectClass
from agents.errors import AmbiguousEffect, Fenced, RunStopped, StepFailed
from agents.leases import Claim
from agents.schema import effects
from agents.states import RUN_STARTS_EFFECTS
from agents.store import RunTransaction, Store

_WORKFLOW = "workflow/"
_HELD_PAUSE_S = 0.1
_HELD_PAUSE_MAX_S = 1.0


@dataclass(frozen=True, slots=True)
class Effect:
    """What is to be done. ``need`` is what it may cost; tools cost nothing here."""

    kind: str
    """``model`` or ``tool``."""
    name: str
    effect_class: EffectClass
    iteration: str
    need: Need | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call brought. ``cost_usd_micros`` is ``None`` when nobody said what it cost."""

    value: Any
    cost_usd_micros: int | None = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make: its key, what it may cost, and whether it may have been made before."""

    key: str
    grant: Grant
    repeated: bool


class GrantTooSmall(Exception):  # noqa: N818  # the gateway's answer, not a fault
    """The gateway would not make the call for what was granted; nothing was spent."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    value: Any


class Effects:
    """Performs effects for one process. ``in_thread`` runs blocking work away from the event loop."""

    def __init__(self, store: Store, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._in_thread = in_thread

    async def perform(
        self,
        claim: Claim,
        effect: Effect,
        call: Callable[[Call], Awaitable[Outcome]],
        reconcile: Callable[[str], Awaitable[Outcome | None]] | None = None,
    ) -> Any:
        """Return the recorded result, or make the call and record what it brings.

        ``reconcile`` asks the other side whether the key was applied. Raises :class:`StepFailed`,
        :class:`AmbiguousEffect`, or :class:`Fenced` when the step or its run is no longer ours.
        """
        while True:
            begun = await self._begin(claim, effect)
            if isinstance(begun, _Recorded):
                return begun.value
            faults.point("intent")
            try:
                outcome = await self._call(begun, effect, call, reconcile)
            except GrantTooSmall:
                await self._in_thread(self.forget, claim, begun)
                if begun.grant.everything:
                    raise StepFailed(
                        "budget", f"{effect.name}: what is left of the budget does not pay for it"
                    ) from None
                assert effect.need is not None
                effect = replace(effect, need=effect.need.more_than(begun.grant))
                continue
            except AmbiguousEffect:
                await self._in_thread(self.settle, claim, begun, "review", None)
                raise
            except StepFailed as failed:
                spent = Outcome(None, failed.spent) if failed.spent else None
                await self._in_thread(self.settle, claim, begun, "failed", spent)
                raise
            faults.point("response")
            await self._in_thread(self.settle, claim, begun, "done", outcome)
            return outcome.value

    async def _begin(self, claim: Claim, effect: Effect) -> Call | _Recorded:
        pause = _HELD_PAUSE_S
        while True:
            try:
                begun: Call | _Recorded = await self._in_thread(self.begin, claim, effect)
            except StillHeld:  # others hold what is left; what they do not use comes back
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _HELD_PAUSE_MAX_S)
            else:
                return begun

    async def _call(
        self,
        begun: Call,
        effect: Effect,
        call: Callable[[Call], Awaitable[Outcome]],
        reconcile: Callable[[str], Awaitable[Outcome | None]] | None,
    ) -> Outcome:
        if begun.repeated and effect.effect_class == "reconcilable":
            if reconcile is None:
                raise AmbiguousEffect(
                    f"{effect.name}: it may have happened, and there is no way to look it up"
                )
            found = await reconcile(begun.key)
            if found is not None:
                return found
        return await call(begun)

    # -- transactions (blocking) ----------------------------------------------------------------------------------

    def begin(self, claim: Claim, effect: Effect) -> Call | _Recorded:
        """The intent: one transaction that checks, reserves and records."""
        key = f"{claim.run_id}:{claim.path}:{effect.iteration}"
        ambiguous = False
        with self._store.run(claim.run_id) as tx:
            _must_own(tx, claim)
            known = tx.effect(key)
            if known is not None and known.state == "done":
                return _Recorded(tx.load(known.result_ref))
            repeated = known is not None and known.state == "intent"
            ambiguous = (repeated and effect.effect_class == "unsafe") or (
                known is not None and known.state == "review"
            )
            if ambiguous:
                statement = update(effects).where(effects.c.key == key).values(state="review")
                tx.connection.execute(statement)
            else:
                if repeated and known is not None:
                    _release(tx, known)
                grant = reserve(tx, _same_again(effect.need, known))
                _write_intent(tx, claim, effect, key, grant, known)
        if ambiguous:
            raise AmbiguousEffect(
                f"{effect.name}: a worker was lost while it did this; it may or may not have happened"
            )
        return Call(key, grant, repeated)

    def settle(self, claim: Claim, call: Call, state: str, outcome: Outcome | None) -> None:
        """Record what came of a call; give back what it did not use. Raises :class:`Fenced` for a zombie."""
        with self._store.run(claim.run_id) as tx:
            known = tx.effect(call.key)
            if known is None or known.fence != claim.fence or known.state != "intent":
                raise Fenced(f"{call.key}: another worker performs this effect")
            _release(tx, known)
            columns: dict[str, Any] = {
                "state": state,
                "finished_at": tx.now,
                "held_usd_micros": 0,
                "held_tokens": 0,
            }
            if outcome is not None:
                spent = known.held_usd_micros if outcome.cost_usd_micros is None else outcome.cost_usd_micros
                columns |= {"cost_usd_micros": spent, "tokens": outcome.tokens}
                if state == "done":
                    columns["result_ref"] = tx.dump(outcome.value)
                usd, tokens = _charged(known)
                _charge(tx, claim, max(0, spent - usd), max(0, outcome.tokens - tokens))
            tx.connection.execute(update(effects).where(effects.c.key == call.key).values(columns))
            if state == "done":
                tx.event(
                    "effect.done", claim.path, call=known.kind, name=known.name, iteration=call.key.rpartition(":")[2],
                    cost_usd_micros=columns.get("cost_usd_micros", 0), tokens=columns.get("tokens", 0),
                )  # fmt: skip

    def forget(self, claim: Claim, call: Call) -> None:
        """Take an intent back whose call was surely not made."""
        self.settle(claim, call, "failed", None)


def _must_own(tx: RunTransaction, claim: Claim) -> None:
    if tx.state not in RUN_STARTS_EFFECTS:
        raise RunStopped(f"run {claim.run_id} starts no effects any more")
    row = tx.step(claim.path)
    if row is None or row.fence != claim.fence or row.state != "running":
        raise Fenced(f"{claim.path}: another worker has this step")


def _write_intent(
    tx: RunTransaction, claim: Claim, effect: Effect, key: str, grant: Grant, known: Row[Any] | None
) -> None:
    columns = {
        "state": "intent", "fence": claim.fence, "held_usd_micros": grant.usd_micros or 0, "held_tokens": grant.tokens,
        "effect_class": effect.effect_class, "finished_at": None,
    }  # fmt: skip
    if known is not None:
        calls = update(effects).where(effects.c.key == key).values(calls=known.calls + 1, **columns)
        tx.connection.execute(calls)
        return
    tx.connection.execute(
        insert(effects).values(
            key=key, run_id=claim.run_id, path=claim.path, kind=effect.kind, name=effect.name[:160], calls=1,
            cost_usd_micros=0, tokens=0, created_at=tx.now, **columns,
        )
    )  # fmt: skip


def _same_again(need: Need | None, known: Row[Any] | None) -> Need | None:
    """The repetition of a call must ask for the same output tokens, or the gateway takes it for another call."""
    if need is None or known is None or known.state != "intent" or not known.held_tokens:
        return need
    return replace(need, step_tokens=known.held_tokens)


def _release(tx: RunTransaction, known: Row[Any]) -> None:
    """Give a hold back to the run."""
    tx.set(
        held_usd_micros=max(0, tx.get("held_usd_micros") - known.held_usd_micros),
        held_tokens=max(0, tx.get("held_tokens") - known.held_tokens),
    )


def _charged(known: Row[Any]) -> tuple[int, int]:
    """What of a call's cost is charged already: under one key a workflow is one run, which tells its whole cost each time."""
    return (known.cost_usd_micros, known.tokens) if known.name.startswith(_WORKFLOW) else (0, 0)


def _charge(tx: RunTransaction, claim: Claim, usd_micros: int, tokens: int) -> None:
    if not usd_micros and not tokens:
        return
    tx.set(
        spent_usd_micros=tx.get("spent_usd_micros") + usd_micros,
        spent_tokens=tx.get("spent_tokens") + tokens,
        largest_usd_micros=max(tx.get("largest_usd_micros"), usd_micros),
    )
    tx.charge_step(claim.path, usd_micros, tokens)
