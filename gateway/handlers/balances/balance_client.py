"""Balance client: request real-time balances from banks through Plaid, within its quotas and the banks' breakers.

A refusal is recorded where it matters (the quota's bucket, the bank's breaker or the Item's next sync run) and becomes
a problem that the client can act on. Shell.
"""

import asyncio
import datetime
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import NamedTuple

import asyncpg

from gateway import metrics
from gateway.handlers.ownership import OwnedItem, sealed_token
from gateway.http.database import connected
from gateway.http.problems import Fault, Problem, invalid, plaid_error
from runtime import logs, plaid_limits
from runtime.plaid.client import OLDEST_BALANCE, Plaid, PlaidRefused
from runtime.plaid.models import OUTAGE_CODES, AccountsAnswer
from runtime.postgres.errors import AWAY
from runtime.scheduler import breakers, enqueue, quotas
from runtime.scheduler.stop_reasons import GONE, LOGIN_REQUIRED, REVOKED, UNLINKED, remedy
from runtime.settings import Settings
from runtime.users.vault import Vault
from schemas.errors import Retry

CALLS_MAX = 32
"""Simultaneous calls of one process. At 5 s a call that is 400 a minute, a third of the client's quota; each holds a
thread and a connection to Plaid."""
SLOT_S_MAX = 10.0
"""Longest wait of a request for a free call: a later retry is better than a bill for an answer that comes too late."""
LIMITED_S = 60.0
DOWN_S = 60.0
"""`Retry-After` of a bank's first failures, before its breaker opens."""

_STOP_REASONS = {
    "ITEM_LOGIN_REQUIRED": LOGIN_REQUIRED,
    "USER_PERMISSION_REVOKED": REVOKED,
    "ITEM_NOT_FOUND": GONE,
    "INVALID_ACCESS_TOKEN": GONE,
    "ITEM_CONCURRENTLY_DELETED": GONE,
}
"""Plaid's codes whose remedy is clear before the Item's next sync run has read its state."""

_log = logs.logger(__name__)


class BalanceQuery(NamedTuple):
    """Accounts to request, all where none is named, and the oldest acceptable time of a balance."""

    account_ids: frozenset[str] = frozenset()
    oldest: datetime.datetime | None = None


class BalanceClient:
    """Requests balances."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault) -> None:
        self._pool = pool
        self._plaid = plaid
        self._vault = vault
        self._limits = settings.limits()
        self._failures_max = settings.institution_failures_max
        self._age_max = datetime.timedelta(seconds=settings.balance_age_max_s)
        self._dated = set(settings.dated_institutions.replace(" ", "").split(","))
        self._slots = asyncio.Semaphore(CALLS_MAX)

    async def balances(self, item: OwnedItem, query: BalanceQuery, *, by: str) -> AccountsAnswer:
        """Request the balances of an Item's bank now.

        A bank that requires OLDEST_BALANCE is remembered, so that only its first request is made twice.
        Raises: Problem, where Plaid, the bank or a quota refuses; PlaidRefused, where the client cannot act on it;
        Retry; Quarantine.
        """
        oldest = query.oldest or (self._oldest() if item.institution_id in self._dated else None)
        try:
            try:
                return await self._request(item, query.account_ids, oldest)
            except PlaidRefused as refusal:
                if refusal.field != OLDEST_BALANCE or oldest is not None:
                    raise
            if item.institution_id is not None:
                self._dated.add(item.institution_id)
            return await self._request(item, query.account_ids, self._oldest())
        except PlaidRefused as refusal:
            await self._record_refusal(item, refusal, by=by)
            raise _problem_of(refusal) from refusal

    def _oldest(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) - self._age_max

    async def _request(
        self, item: OwnedItem, account_ids: Iterable[str], oldest: datetime.datetime | None
    ) -> AccountsAnswer:
        try:
            async with asyncio.timeout(SLOT_S_MAX):
                await self._slots.acquire()
        except TimeoutError:
            raise Retry("too many banks are being asked", wait_s=SLOT_S_MAX) from None
        try:
            token, was_failing = await self._admit(item)
            answer = await self._plaid.balances(token, account_ids=sorted(account_ids), oldest=oldest)
        finally:
            self._slots.release()
        metrics.BALANCE_REQUESTS.inc()
        if was_failing and item.institution_id is not None:
            async with connected(self._pool) as connection:
                await breakers.answered(connection, item.institution_id)
        return answer

    async def _admit(self, item: OwnedItem) -> tuple[str, bool]:
        """Return the Item's access token, and whether its bank failed lately. The quota is taken last.

        Raises: Problem, where the bank is down, the quota used up, or the Item unlinked.
        """
        async with connected(self._pool) as connection:
            sealed = await sealed_token(connection, item.item_id)
            if sealed is None:
                raise stopped(UNLINKED)
            open_s = None
            if item.institution_id is not None:
                open_s = await breakers.open_s(connection, item.institution_id)
            if open_s:
                raise _down(open_s)
            token = self._vault.open_token(sealed, item_id=item.item_id)
            wait_s = await quotas.take(connection, plaid_limits.BALANCE, item.item_id, self._limits)
        if wait_s:
            raise _limited(wait_s)
        return token, open_s is not None

    async def _record_refusal(self, item: OwnedItem, refusal: PlaidRefused, *, by: str) -> None:
        try:
            async with connected(self._pool) as connection:
                if refusal.error_type == "RATE_LIMIT_EXCEEDED":
                    await quotas.record_exceeded(
                        connection, plaid_limits.BALANCE, item.item_id, refusal.error_code, self._limits
                    )
                elif refusal.error_code in OUTAGE_CODES and item.institution_id is not None:
                    await breakers.failed(connection, item.institution_id, refusal.error_code, self._failures_max)
                elif _concerns_item(refusal):
                    await enqueue.mark_manual(connection, item.item_id, by=by)
        except AWAY as error:  # the next refusal is recorded instead
            _log.warning("a refusal is not told", item_id=item.item_id, reason=type(error).__name__)


def stopped(reason: str | None, **more: object) -> Problem:
    """Return the problem of a stopped Item with its remedy; None: only the next sync run can find the reason."""
    document = {"stopped": reason, "remedy": remedy(reason), **more}
    return Problem(HTTPStatus.CONFLICT, "item_stopped", "the item's bank cannot be asked now", more=document)


def _problem_of(refusal: PlaidRefused) -> Problem | PlaidRefused:
    """Return the problem of a refusal; the refusal itself where the client cannot act on it."""
    more, code = plaid_error(refusal), refusal.error_code
    if refusal.error_type == "RATE_LIMIT_EXCEEDED":
        return _limited(LIMITED_S, **more)
    if code in OUTAGE_CODES:
        return _down(DOWN_S, **more)
    if code == "INVALID_ACCOUNT_ID":
        return invalid(Fault("account_ids", "names an account that the item does not have"))
    if code == "LAST_UPDATED_DATETIME_OUT_OF_RANGE":
        detail = f"the bank has no balance that new; ask with an earlier {OLDEST_BALANCE}"
        return Problem(HTTPStatus.CONFLICT, "balance_too_old", detail, more=more)
    if _concerns_item(refusal):
        return stopped(_STOP_REASONS.get(code), **more)
    return refusal


def _concerns_item(refusal: PlaidRefused) -> bool:
    return refusal.error_type == "ITEM_ERROR" or refusal.error_code in _STOP_REASONS


def _limited(wait_s: float, **more: object) -> Problem:
    retry_s = math.ceil(wait_s)
    detail = f"Plaid allows no other request for this item's balances now; the next is possible in {retry_s} s"
    headers = {"Retry-After": str(retry_s)}
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, "balance_limit", detail, headers=headers, more=more)


def _down(wait_s: float, **more: object) -> Problem:
    headers = {"Retry-After": str(math.ceil(wait_s))}
    detail = "the bank does not answer; what it reported last can be read"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "institution_down", detail, headers=headers, more=more)
