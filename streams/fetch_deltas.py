"""The agent fetch_deltas: a claimed Item, asked of Plaid, becomes records of `changesets`. Shell.

It has no offsets to lose: what it does not finish is due again when its lease ends.
"""

import asyncio
import time
from typing import Any

import msgspec

from runtime import logs
from runtime import metrics as shared
from runtime.crash_points import CrashPoint, reach
from runtime.dues import Claimed, Released
from runtime.kafka import InDoubt
from runtime.plaid import PlaidRefused
from schemas.errors import Halt, Quarantine, Retry
from streams import classify, failures, metrics
from streams.classify import Action
from streams.insisting import insist
from streams.passes import Pass, TooManyGone, Unrecordable, World, tallied

RENEWALS_A_LEASE = 3
"""A lease is renewed when a third of it is over: two renewals may fail before it is lost."""
REASON_CHARACTERS_MAX = 300

_log = logs.logger(__name__)


class FetchDeltas:
    """Passes over Items, each under its lease."""

    def __init__(self, world: World, *, lease_s: float) -> None:
        self._world = world
        self._lease_s = lease_s

    async def fetch(self, claimed: Claimed) -> None:
        """Make one pass and give the Item back. Raises: Halt."""
        reach(CrashPoint.FETCH_CLAIMED)
        if claimed.expired:
            await self._wait_for_the_log(claimed)
            return
        work = asyncio.create_task(self._work(claimed))
        keeper = asyncio.create_task(self._keep(claimed))
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            else:
                metrics.LOST.inc()
                _log.warning("lease lost", item_id=claimed.item_id)
        finally:
            for task in (work, keeper):
                task.cancel()
            await asyncio.gather(work, keeper, return_exceptions=True)

    async def _wait_for_the_log(self, claimed: Claimed) -> None:
        """After a lease that was never given back: what its holder appended is read before anything else is done."""
        metrics.EXPIRED.inc()
        try:
            end = await self._world.log.end(claimed.partition)
            await self._world.store.let_go(claimed, wait_offset=end - 1)
        except Retry as error:
            _log.warning("not let go", item_id=claimed.item_id, reason=str(error))  # this lease expires, too

    async def _keep(self, claimed: Claimed) -> None:
        """Renew the lease until it is lost."""
        renewed_at = time.monotonic()
        while time.monotonic() - renewed_at < self._lease_s:
            await asyncio.sleep(self._lease_s / RENEWALS_A_LEASE)
            try:
                if not await self._world.store.renew(claimed):
                    return
                renewed_at = time.monotonic()
            except Retry as error:
                _log.warning("lease not renewed", item_id=claimed.item_id, reason=str(error))

    async def _work(self, claimed: Claimed) -> None:
        began = time.monotonic()
        if claimed.head is not None and claimed.head.unlinked:
            await insist(lambda: self._world.store.finish_unlink(claimed), what="finish_unlink")
            return
        try:
            made = await self._begun(claimed)
            result = made if isinstance(made, Released) else await self._result(claimed, made)
        except InDoubt as error:
            # Whether the record is in the log only the log can tell: the lease ends, and the next claimer reads it.
            _log.warning("append in doubt", item_id=claimed.item_id, reason=str(error))
            await insist(lambda: self._world.store.expire(claimed), what="expire")
            return
        if result is None:
            return
        if isinstance(made, Pass):
            result = tallied(result, made)
        result = msgspec.structs.replace(result, duration_s=time.monotonic() - began)
        metrics.PASSES.labels(claimed.cause.kind, result.outcome).inc()
        metrics.PASS_SECONDS.observe(result.duration_s)
        if result.stopped == failures.PARKED:
            await insist(lambda: self._world.store.park(claimed, _reason(result)), what="park")
            shared.PARKED.labels("streams").inc()
        await insist(lambda: self._world.store.release(claimed, result), what="release")
        reach(CrashPoint.FETCH_AFTER_RELEASE)

    async def _begun(self, claimed: Claimed) -> Pass | Released:
        """The pass, or why there can be none. Raises: Halt, where a key or token does not open."""
        store = self._world.store
        try:
            keys = await store.keys(claimed.user)
        except Quarantine as error:
            return await self._keyless(claimed, _error("no_key", str(error)))
        except Retry as error:
            return failures.late(claimed, _error("postgres", str(error)), jitter=self._world.random())
        if keys is None:
            return failures.erased()
        token = store.token(claimed)
        if token is None:
            return failures.refused(claimed, Action.NEVER, _error("no_token", "the Item has no token"), jitter=0.0)
        return Pass(self._world, claimed, keys, token)

    async def _keyless(self, claimed: Claimed, said: dict[str, Any]) -> Released:
        """Without a key no record can be written: the Item is set aside, but one to be unlinked ends at Plaid first."""
        token = self._world.store.token(claimed) if claimed.unlink_requested else None
        if token is None:
            return failures.parked(claimed, said)
        try:
            await self._world.bank.remove(token)
        except PlaidRefused as refusal:
            if not classify.is_removed(refusal.error_code):
                action = classify.action(refusal.error_type, refusal.error_code)
                return failures.refused(claimed, action, _refusal(refusal), jitter=self._world.random())
        except (Retry, Quarantine) as error:
            return failures.late(claimed, _error("late", str(error)), jitter=self._world.random())
        return failures.parked(claimed, said)

    async def _result(self, claimed: Claimed, made: Pass) -> Released | None:
        """What became of a pass; None where the Item is gone from the schedule. Raises: InDoubt, Halt."""
        try:
            try:
                return await made.run()
            except PlaidRefused as refusal:
                return await self._refused(claimed, made, refusal)
        except (InDoubt, Halt):
            raise
        except Unrecordable as error:
            return failures.parked(claimed, _error("unrecordable", str(error)))
        except TooManyGone as error:
            metrics.SUSPECTED.inc()
            _log.error("not taken as gone", item_id=claimed.item_id, reason=str(error))
            said = _error("too_many_gone", str(error))
            return failures.refused(claimed, Action.HOURS, said, jitter=self._world.random())
        except Retry as error:
            return failures.late(
                claimed, _error("late", str(error)), jitter=self._world.random(), wait_s=error.wait_s
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - one Item that breaks our code must not stop the others
            _log.exception("pass failed", item_id=claimed.item_id)
            said = _error(type(error).__name__, str(error) if isinstance(error, Quarantine) else "")
            if failures.is_hopeless(claimed):
                return failures.parked(claimed, said)
            return failures.late(claimed, said, jitter=self._world.random())

    async def _refused(self, claimed: Claimed, made: Pass, refusal: PlaidRefused) -> Released:
        """What follows an error of Plaid's: a state of the Item, or a wait."""
        action = made.action_after(refusal)
        metrics.REFUSALS.labels(action.name.lower()).inc()
        _log.warning("refused", item_id=claimed.item_id, code=refusal.error_code, action=action.value)
        if action in (Action.USER, Action.GONE) and not claimed.unlink_requested:
            return await made.stop(classify.refused_state(refusal.error_code, refusal.reason))
        return failures.refused(claimed, action, _refusal(refusal), jitter=self._world.random())


def _error(code: str, detail: str) -> dict[str, Any]:
    """What `last_error` and `sync_attempts` keep: codes and our own words, never Plaid's message or a token."""
    return {"code": code, "detail": detail[:REASON_CHARACTERS_MAX]}


def _refusal(refusal: PlaidRefused) -> dict[str, Any]:
    return _error(refusal.error_code, refusal.error_type) | {"request_id": refusal.request_id}


def _reason(result: Released) -> str:
    error = result.error or {}
    return f"{error.get('code')}: {error.get('detail')}"
