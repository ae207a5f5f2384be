"""The agent fetch_deltas: a claimed Item, asked of Plaid, becomes records of `changesets`. Shell.

It has no offsets to lose: what it does not finish is due again when its lease ends.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from runtime import logs
from runtime import metrics as shared
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.clients import InDoubt
from runtime.plaid.client import PlaidRefused
from runtime.retry import insist
from runtime.scheduler.types import Claimed, Released
from schemas.errors import Halt, Quarantine, Retry
from streams import metrics
from streams.limits.rate_limited import LeaseLost, Limited
from streams.ports import Bank, SyncContext
from streams.sync import outcomes, plaid_errors
from streams.sync.changeset_writer import Unrecordable
from streams.sync.item_client import action_after, said
from streams.sync.plaid_errors import Action
from streams.sync.sync_run import Pass, tallied
from streams.sync.unlink import TooManyGone

RENEWALS_A_LEASE = 3
"""A lease is renewed when a third of it is over: two renewals may fail before it is lost."""

_log = logs.logger(__name__)


class FetchDeltas:
    """Passes over Items, each under its lease."""

    def __init__(self, world: SyncContext, *, lease_s: float) -> None:
        self._world = world
        self._lease_s = lease_s

    async def fetch(self, claimed: Claimed, *, claimed_at: float) -> None:
        """Make one pass and give the Item back. Raises: Halt.

        Units: `claimed_at` on the world's monotonic clock, when the claim was asked for.
        """
        reach(CrashPoint.FETCH_CLAIMED)
        if claimed.expired:
            await self._wait_for_the_log(claimed)
            return
        lease = Lease(self._world.monotonic, self._lease_s, claimed_at)
        work = asyncio.create_task(self._work(claimed, lease))
        keeper = asyncio.create_task(self._keep(claimed, lease))
        try:
            await asyncio.wait({work, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            else:
                self._lost(claimed)
        finally:
            for task in (work, keeper):
                task.cancel()
            await asyncio.gather(work, keeper, return_exceptions=True)

    def _lost(self, claimed: Claimed) -> None:
        metrics.LOST.inc()
        _log.warning("lease lost", item_id=claimed.item_id)

    async def _wait_for_the_log(self, claimed: Claimed) -> None:
        """After a lease that was never given back: what its holder appended is read before anything else is done."""
        metrics.EXPIRED.inc()
        try:
            end = await self._world.log.end(claimed.partition)
            await self._world.store.release_untouched(claimed, wait_offset=end - 1)
        except Retry as error:
            _log.warning("not let go", item_id=claimed.item_id, reason=str(error))  # this lease expires, too

    async def _keep(self, claimed: Claimed, lease: "Lease") -> None:
        """Renew the lease until it is lost."""
        while lease.is_live():
            await asyncio.sleep(self._lease_s / RENEWALS_A_LEASE)
            began = self._world.monotonic()
            try:
                if not await self._world.store.renew(claimed):
                    return
                lease.hold(since=began)
            except Retry as error:
                _log.warning("lease not renewed", item_id=claimed.item_id, reason=str(error))

    async def _work(self, claimed: Claimed, lease: "Lease") -> None:
        began = self._world.monotonic()
        if claimed.head is not None and claimed.head.unlinked:
            await insist(lambda: self._world.store.finish_unlink(claimed), what="finish_unlink")
            return
        try:
            made = await self._begun(claimed, self._bank(claimed, lease))
            result = made if isinstance(made, Released) else await self._result(claimed, made)
        except InDoubt as error:
            # Whether the record is in the log only the log can tell: the lease ends, and the next claimer reads it.
            _log.warning("append in doubt", item_id=claimed.item_id, reason=str(error))
            await insist(lambda: self._world.store.expire(claimed), what="expire")
            return
        except LeaseLost:
            self._lost(claimed)  # another one has the Item: there is nothing to give back
            return
        if result is None:
            return
        if isinstance(made, Pass):
            result = tallied(result, made)
        result = msgspec.structs.replace(result, duration_s=self._world.monotonic() - began)
        await self._give_back(claimed, result)

    async def _give_back(self, claimed: Claimed, result: Released) -> None:
        metrics.PASSES.labels(claimed.cause.kind, result.outcome).inc()
        metrics.PASS_SECONDS.observe(result.duration_s)
        if result.stopped == outcomes.QUARANTINED:
            await insist(lambda: self._world.store.quarantine(claimed, _reason(result)), what="quarantine")
            shared.QUARANTINED.labels("streams").inc()
        await insist(lambda: self._world.store.release(claimed, result), what="release")
        reach(CrashPoint.FETCH_AFTER_RELEASE)

    def _bank(self, claimed: Claimed, lease: "Lease") -> Bank:
        """Plaid, within its quotas where there are any, and only while the lease is live."""
        if self._world.limits is None:
            return self._world.bank
        return Limited(
            self._world.bank, self._world.limits, claimed, is_live=lease.is_live, claimed_s_ago=lease.age_s()
        )

    async def _begun(self, claimed: Claimed, bank: Bank) -> Pass | Released:
        """The pass, or why there can be none. Raises: Halt, where a key or token does not open."""
        store = self._world.store
        try:
            keys = await store.keys(claimed.user)
        except Quarantine as error:
            return await self._keyless(claimed, bank, said("no_key", str(error)))
        except Retry as error:
            return outcomes.late(claimed, said("postgres", str(error)), jitter=self._world.random())
        if keys is None:
            return outcomes.erased()
        token = store.token(claimed)
        if token is None:
            return outcomes.refused(claimed, Action.NEVER, said("no_token", "the Item has no token"), jitter=0.0)
        return Pass(self._world._replace(bank=bank), claimed, keys, token)

    async def _keyless(self, claimed: Claimed, bank: Bank, why: dict[str, Any]) -> Released:
        """Without a key no record can be written: the Item is set aside, but one to be unlinked ends at Plaid first."""
        token = self._world.store.token(claimed) if claimed.unlink_requested else None
        if token is None:
            return outcomes.quarantined(claimed, why)
        try:
            await bank.remove(token)
        except PlaidRefused as refusal:
            if not plaid_errors.is_removed(refusal.error_code):
                return outcomes.refused(claimed, action_after(refusal), _refusal(refusal), jitter=self._world.random())
        except LeaseLost:
            raise
        except (Retry, Quarantine) as error:
            return outcomes.late(claimed, said("late", str(error)), jitter=self._world.random())
        return outcomes.quarantined(claimed, why)

    async def _result(self, claimed: Claimed, made: Pass) -> Released | None:
        """What became of a pass; None where the Item is gone from the schedule. Raises: InDoubt, LeaseLost, Halt."""
        try:
            try:
                return await made.run()
            except PlaidRefused as refusal:
                return await self._refused(claimed, made, refusal)
        except (InDoubt, LeaseLost, Halt):
            raise
        except Unrecordable as error:
            return outcomes.quarantined(claimed, said("unrecordable", str(error)))
        except TooManyGone as error:
            metrics.SUSPECTED.inc()
            _log.error("not taken as gone", item_id=claimed.item_id, reason=str(error))
            why = said("too_many_gone", str(error))
            return outcomes.refused(claimed, Action.HOURS, why, jitter=self._world.random())
        except Retry as error:
            if error.wait_s is not None:  # our own quota: it knows when there is room again
                return outcomes.limited(claimed, said("quota", str(error)), wait_s=error.wait_s)
            return outcomes.late(claimed, said("late", str(error)), jitter=self._world.random())
        except Exception as error:  # noqa: BLE001 - one Item that breaks our code must not stop the others
            _log.exception("pass failed", item_id=claimed.item_id)
            why = said(type(error).__name__, str(error) if isinstance(error, Quarantine) else "")
            if outcomes.is_hopeless(claimed):
                return outcomes.quarantined(claimed, why)
            return outcomes.late(claimed, why, jitter=self._world.random())

    async def _refused(self, claimed: Claimed, made: Pass, refusal: PlaidRefused) -> Released:
        """What follows an error of Plaid's: a state of the Item, or a wait."""
        action = action_after(refusal)
        metrics.REFUSALS.labels(action.name.lower()).inc()
        _log.warning("refused", item_id=claimed.item_id, code=refusal.error_code, action=action.value)
        if action in plaid_errors.STOPPING and not claimed.unlink_requested:
            released = await made.stop(plaid_errors.refused_state(action, refusal.error_code, refusal.reason))
            return msgspec.structs.replace(released, error=_refusal(refusal))
        return outcomes.refused(claimed, action, _refusal(refusal), jitter=self._world.random())


class Lease:
    """Until when a lease is surely live: counted from before Postgres was asked, so never longer than there."""

    def __init__(self, monotonic: Callable[[], float], lease_s: float, since: float) -> None:
        self._monotonic = monotonic
        self._lease_s = lease_s
        self._since = since
        self._until = since + lease_s

    def hold(self, *, since: float) -> None:
        """It was renewed, which was asked for at `since`."""
        self._until = since + self._lease_s

    def age_s(self) -> float:
        """How long ago the claim was asked for."""
        return self._monotonic() - self._since

    def is_live(self) -> bool:
        """Whether it still holds now."""
        return self._monotonic() < self._until


def _refusal(refusal: PlaidRefused) -> dict[str, Any]:
    return said(refusal.error_code, refusal.error_type, request_id=refusal.request_id)


def _reason(result: Released) -> str:
    error = result.error or {}
    return f"{error.get('code')}: {error.get('detail')}"
