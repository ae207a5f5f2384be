"""Agent fetch_deltas: sync a claimed Item from Plaid into records of `changesets`. Shell.

It has no offsets to lose: an Item that it does not finish is due again when its lease ends.
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
from runtime.retry import retry_until_done
from runtime.scheduler.types import Claimed, Released
from schemas.errors import Halt, Quarantine, Retry
from streams import metrics
from streams.limits.rate_limited import RateLimitedPlaid
from streams.ports import LeaseLost, PlaidApi, SyncContext
from streams.sync import outcomes, plaid_errors
from streams.sync.changeset_writer import Unrecordable
from streams.sync.item_client import TooManyGone
from streams.sync.outcomes import error_fields
from streams.sync.plaid_errors import ErrorClass
from streams.sync.sync_run import SyncRun

RENEWALS_A_LEASE = 3
"""A lease is renewed when a third of it is over: two renewals may fail before it is lost."""

_log = logs.logger(__name__)


class FetchDeltas:
    """Agent that makes sync runs, each under its lease."""

    def __init__(self, context: SyncContext, *, lease_s: float) -> None:
        self._context = context
        self._store = context.store
        self._lease_s = lease_s

    async def fetch(self, claimed: Claimed, *, claimed_at: float) -> None:
        """Make one sync run while its lease is renewed, and give the Item back. Raises: Halt.

        Units: `claimed_at` on the context's monotonic clock, when the claim was sent.
        """
        reach(CrashPoint.FETCH_CLAIMED)
        if claimed.expired:
            await self._wait_for_log(claimed)
            return
        lease = Lease(self._context.monotonic, self._lease_s, claimed_at)
        work = asyncio.create_task(self._sync(claimed, lease))
        renewals = asyncio.create_task(self._renew(claimed, lease))
        try:
            await asyncio.wait({work, renewals}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            else:
                _count_lost_lease(claimed)
        finally:
            for task in (work, renewals):
                task.cancel()
            await asyncio.gather(work, renewals, return_exceptions=True)

    async def _sync(self, claimed: Claimed, lease: "Lease") -> None:
        """Open the Item, run its sync, turn errors into an outcome, and release the Item."""
        started_at = self._context.monotonic()
        if claimed.head is not None and claimed.head.unlinked:
            await retry_until_done(lambda: self._store.finish_unlink(claimed), action="finish_unlink")
            return
        try:
            bank = self._context.bank
            if self._context.limits is not None:
                bank = RateLimitedPlaid(
                    bank, self._context.limits, claimed, is_live=lease.is_live, claimed_s_ago=lease.age_s()
                )
            run = await self._open(claimed, bank)
            result = run if isinstance(run, Released) else await self._outcome(claimed, run)
        except InDoubt as error:
            # Only the log can show whether it has the record: the lease ends, and the next claimer reads the log.
            _log.warning("append in doubt", item_id=claimed.item_id, reason=str(error))
            await retry_until_done(lambda: self._store.expire(claimed), action="expire")
            return
        except LeaseLost:
            _count_lost_lease(claimed)  # another worker has the Item: there is nothing to release
            return
        if result is not None:
            figures = run.figures() if isinstance(run, SyncRun) else {}
            duration_s = self._context.monotonic() - started_at
            await self._release(claimed, msgspec.structs.replace(result, duration_s=duration_s, **figures))

    async def _release(self, claimed: Claimed, result: Released) -> None:
        metrics.SYNC_RUNS.labels(claimed.cause.kind, result.outcome).inc()
        metrics.SYNC_RUN_SECONDS.observe(result.duration_s)
        if result.stopped == outcomes.QUARANTINED:
            error = result.error or {}
            reason = f"{error.get('code')}: {error.get('detail')}"
            await retry_until_done(lambda: self._store.quarantine(claimed, reason), action="quarantine")
            shared.QUARANTINED.labels("streams").inc()
        await retry_until_done(lambda: self._store.release(claimed, result), action="release")
        reach(CrashPoint.FETCH_AFTER_RELEASE)

    async def _wait_for_log(self, claimed: Claimed) -> None:
        """Give back an Item whose last lease was not, until follow_heads has read what its holder appended."""
        metrics.LEASES_EXPIRED.inc()
        try:
            end = await self._context.log.end(claimed.partition)
            await self._store.release_untouched(claimed, wait_offset=end - 1)
        except Retry as error:
            _log.warning("lease not released", item_id=claimed.item_id, reason=str(error))  # this lease expires, too

    async def _renew(self, claimed: Claimed, lease: "Lease") -> None:
        """Renew the lease until it is lost."""
        while lease.is_live():
            await asyncio.sleep(self._lease_s / RENEWALS_A_LEASE)
            started_at = self._context.monotonic()
            try:
                if not await self._store.renew(claimed):
                    return
                lease.renew(since=started_at)
            except Retry as error:
                _log.warning("lease not renewed", item_id=claimed.item_id, reason=str(error))

    async def _open(self, claimed: Claimed, bank: PlaidApi) -> SyncRun | Released:
        """Return the sync run, or why there can be none. Raises: Halt, where a key or token does not open."""
        try:
            keys = await self._store.keys(claimed.user)
        except Quarantine as error:
            return await self._quarantine_without_key(claimed, bank, error)
        except Retry as error:
            return self._after_failure(claimed, "postgres", str(error))
        if keys is None:
            return Released(outcome="stopped", done=True, stopped=outcomes.ERASED)
        token = self._store.token(claimed)
        if token is None:
            error_row = error_fields("no_token", "the Item has no token")
            return outcomes.after_plaid_error(claimed, ErrorClass.REJECTED, error_row, jitter=0.0)
        return SyncRun(self._context._replace(bank=bank), claimed, keys, token)

    async def _quarantine_without_key(self, claimed: Claimed, bank: PlaidApi, error: Quarantine) -> Released:
        """Quarantine an Item for which no record can be sealed; where an unlink is requested, first remove it."""
        token = self._store.token(claimed) if claimed.unlink_requested else None
        if token is not None:
            try:
                await bank.remove(token)
            except PlaidRefused as refusal:
                if refusal.error_code not in plaid_errors.REMOVED_CODES:
                    return self._after_refusal(claimed, refusal)
            except LeaseLost:
                raise
            except (Retry, Quarantine) as failure:
                return self._after_failure(claimed, "late", str(failure))
        return outcomes.quarantined(claimed, error_fields("no_key", str(error)))

    async def _outcome(self, claimed: Claimed, run: SyncRun) -> Released | None:
        """Run a sync and turn its errors into an outcome; None where the Item is gone from the schedule.

        Raises: InDoubt, LeaseLost, Halt.
        """
        try:
            try:
                return await run.run()
            except PlaidRefused as refusal:
                return await self._stop_or_wait(claimed, run, refusal)
        except (InDoubt, LeaseLost, Halt):
            raise
        except Unrecordable as error:
            return outcomes.quarantined(claimed, error_fields("unrecordable", str(error)))
        except TooManyGone as error:
            metrics.GONE_SUSPECTED.inc()
            _log.error("not treated as gone", item_id=claimed.item_id, reason=str(error))
            fields = error_fields("too_many_gone", str(error))
            return outcomes.after_plaid_error(claimed, ErrorClass.OUTAGE, fields, jitter=self._context.random())
        except Retry as error:
            if error.wait_s is not None:  # our own quota: the bucket gives the time of its next token
                return outcomes.after_rate_limit(claimed, error_fields("quota", str(error)), wait_s=error.wait_s)
            return self._after_failure(claimed, "late", str(error))
        except Exception as error:  # noqa: BLE001 - one Item that breaks our code must not stop the others
            _log.exception("sync run failed", item_id=claimed.item_id)
            code, detail = type(error).__name__, str(error) if isinstance(error, Quarantine) else ""
            if outcomes.is_exhausted(claimed):
                return outcomes.quarantined(claimed, error_fields(code, detail))
            return self._after_failure(claimed, code, detail)

    async def _stop_or_wait(self, claimed: Claimed, run: SyncRun, refusal: PlaidRefused) -> Released:
        error_class = plaid_errors.classify(refusal.error_type, refusal.error_code)
        metrics.REFUSALS.labels(error_class.value).inc()
        _log.warning("refused", item_id=claimed.item_id, code=refusal.error_code, action=error_class.value)
        if error_class in plaid_errors.STOPPING and not claimed.unlink_requested:
            released = await run.stop(plaid_errors.stopped_state(error_class, refusal.error_code, refusal.reason))
            return msgspec.structs.replace(released, error=_refusal_fields(refusal))
        return self._after_refusal(claimed, refusal)

    def _after_refusal(self, claimed: Claimed, refusal: PlaidRefused) -> Released:
        error_class = plaid_errors.classify(refusal.error_type, refusal.error_code)
        fields = _refusal_fields(refusal)
        return outcomes.after_plaid_error(claimed, error_class, fields, jitter=self._context.random())

    def _after_failure(self, claimed: Claimed, code: str, detail: str) -> Released:
        return outcomes.after_failure(claimed, error_fields(code, detail), jitter=self._context.random())


class Lease:
    """Time until which a lease certainly holds: counted from before the statement, so no longer than in Postgres."""

    def __init__(self, monotonic: Callable[[], float], lease_s: float, since: float) -> None:
        self._monotonic = monotonic
        self._lease_s = lease_s
        self._since = since
        self._until = since + lease_s

    def renew(self, *, since: float) -> None:
        """Extend the lease after a renewal that was sent at `since`."""
        self._until = since + self._lease_s

    def age_s(self) -> float:
        """Return the seconds since the claim was sent."""
        return self._monotonic() - self._since

    def is_live(self) -> bool:
        """Return whether the lease certainly holds now."""
        return self._monotonic() < self._until


def _refusal_fields(refusal: PlaidRefused) -> dict[str, Any]:
    return error_fields(refusal.error_code, refusal.error_type, request_id=refusal.request_id)


def _count_lost_lease(claimed: Claimed) -> None:
    metrics.LEASES_LOST.inc()
    _log.warning("lease lost", item_id=claimed.item_id)
