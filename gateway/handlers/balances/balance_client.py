"""Banks asked for balances of now, through Plaid: paid, within its quotas, and not while a bank is down. Shell.

A refusal is told to whom it concerns, the quota's bucket, the bank's breaker or the Item's next pass, and becomes the
problem that a client can do something about.
"""

import asyncio
import datetime
import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

import asyncpg

from gateway import metrics
from gateway.handlers import item_control
from gateway.handlers.item_control import Owned
from gateway.http.database import connected
from gateway.http.problems import Fault, Problem, invalid, plaid_said
from runtime import logs
from runtime.plaid.client import OLDEST_BALANCE, Plaid, PlaidRefused
from runtime.plaid.models import OUTAGE_CODES, AccountsAnswer
from runtime.postgres.errors import AWAY
from runtime.scheduler import breakers, enqueue, quotas
from runtime.scheduler.stop_reasons import GONE, LOGIN_REQUIRED, REVOKED, UNLINKED, remedy
from runtime.settings import Settings
from runtime.users.vault import Vault
from schemas.errors import Retry

CALLS_MAX = 32
"""Banks asked at once by one process. At 5 s an answer that is 400 a minute, a third of the client's quota; each holds
a thread and a connection to Plaid."""
SLOT_S_MAX = 10.0
"""How long a request waits for its turn: then it is better told to come back than to wait and be billed too late."""
LIMITED_S = 60.0
DOWN_S = 60.0
"""When to come back after the first failures of a bank, before its breaker opens."""

_STOPPED = {
    "ITEM_LOGIN_REQUIRED": LOGIN_REQUIRED,
    "USER_PERMISSION_REVOKED": REVOKED,
    "ITEM_NOT_FOUND": GONE,
    "INVALID_ACCESS_TOKEN": GONE,
    "ITEM_CONCURRENTLY_DELETED": GONE,
}
"""Plaid's codes whose remedy is known before the Item's next pass has read its state."""

_log = logs.logger(__name__)


class Wish(NamedTuple):
    """What to ask a bank for: which accounts, all where none is named, and how old a balance may be."""

    account_ids: frozenset[str] = frozenset()
    oldest: datetime.datetime | None = None


class Banks:
    """Asks for balances."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault) -> None:
        self._pool = pool
        self._plaid = plaid
        self._vault = vault
        self._limits = settings.limits()
        self._failures_max = settings.institution_failures_max
        self._age_max = datetime.timedelta(seconds=settings.balance_age_max_s)
        self._dated = set(settings.dated_institutions.replace(" ", "").split(","))
        self._slots = asyncio.Semaphore(CALLS_MAX)

    async def balances(self, item: Owned, wish: Wish, *, by: str) -> AccountsAnswer:
        """Ask an Item's bank now.

        Raises: Problem, where Plaid, the bank or a quota says no; PlaidRefused, where nobody here can help; Retry;
        Quarantine.
        """
        oldest = wish.oldest or (self._oldest() if item.institution_id in self._dated else None)
        try:
            try:
                return await self._ask(item, wish.account_ids, oldest)
            except PlaidRefused as refusal:
                if refusal.field != OLDEST_BALANCE or oldest is not None:
                    raise
            if item.institution_id is not None:
                self._dated.add(item.institution_id)
            return await self._ask(item, wish.account_ids, self._oldest())
        except PlaidRefused as refusal:
            await self._tell(item, refusal, by=by)
            raise self._problem(refusal) from refusal

    def _oldest(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) - self._age_max

    async def _ask(
        self, item: Owned, account_ids: Sequence[str] | frozenset[str], oldest: datetime.datetime | None
    ) -> AccountsAnswer:
        try:
            async with asyncio.timeout(SLOT_S_MAX):
                await self._slots.acquire()
        except TimeoutError:
            raise Retry("too many banks are being asked", wait_s=SLOT_S_MAX) from None
        try:
            token, was_failing = await self._pass(item)
            answer = await self._plaid.balances(token, account_ids=sorted(account_ids), oldest=oldest)
        finally:
            self._slots.release()
        metrics.BALANCE_REQUESTS.inc()
        if was_failing and item.institution_id is not None:
            async with connected(self._pool) as connection:
                await breakers.answered(connection, item.institution_id)
        return answer

    async def _pass(self, item: Owned) -> tuple[str, bool]:
        """Take the tokens of the quotas, last of all. Gives the Item's token, and whether its bank failed lately.

        Raises: Problem, where the bank is down, the quota used up, or the Item unlinked.
        """
        async with connected(self._pool) as connection:
            sealed = await item_control.sealed_token(connection, item.item_id)
            if sealed is None:
                raise stopped(UNLINKED)
            open_s = None
            if item.institution_id is not None:
                open_s = await breakers.open_s(connection, item.institution_id)
            if open_s:
                raise _down(open_s)
            token = self._vault.open_token(sealed, item_id=item.item_id)
            wait_s = await quotas.take(connection, quotas.BALANCE, item.item_id, self._limits)
        if wait_s:
            raise _limited(wait_s)
        return token, open_s is not None

    async def _tell(self, item: Owned, refusal: PlaidRefused, *, by: str) -> None:
        """Tell a refusal to whom it concerns. What cannot be told now is told by the next one."""
        try:
            async with connected(self._pool) as connection:
                if refusal.error_type == "RATE_LIMIT_EXCEEDED":
                    await quotas.record_exceeded(
                        connection, quotas.BALANCE, item.item_id, refusal.error_code, self._limits
                    )
                elif refusal.error_code in OUTAGE_CODES and item.institution_id is not None:
                    await breakers.failed(connection, item.institution_id, refusal.error_code, self._failures_max)
                elif _is_about_item(refusal):
                    await enqueue.mark_manual(connection, item.item_id, by=by)
        except AWAY as error:
            _log.warning("a refusal is not told", item_id=item.item_id, reason=type(error).__name__)

    def _problem(self, refusal: PlaidRefused) -> Problem | PlaidRefused:
        """What a client is told of a refusal; the refusal itself where the client can do nothing about it."""
        more, code = plaid_said(refusal), refusal.error_code
        if refusal.error_type == "RATE_LIMIT_EXCEEDED":
            return _limited(LIMITED_S, **more)
        if code in OUTAGE_CODES:
            return _down(DOWN_S, **more)
        if code == "INVALID_ACCOUNT_ID":
            return invalid(Fault("account_ids", "names an account that the item does not have"))
        if code == "LAST_UPDATED_DATETIME_OUT_OF_RANGE":
            detail = f"the bank has no balance that new; ask with an earlier {OLDEST_BALANCE}"
            return Problem(HTTPStatus.CONFLICT, "balance_too_old", detail, more=more)
        if _is_about_item(refusal):
            return stopped(_STOPPED.get(code), **more)
        return refusal


def stopped(why: str | None, **more: object) -> Problem:
    """The problem of an Item that cannot be asked about, with what to do; None: only the next pass can say."""
    told = {"stopped": why, "remedy": remedy(why), **more}
    return Problem(HTTPStatus.CONFLICT, "item_stopped", "the item's bank cannot be asked now", more=told)


def _is_about_item(refusal: PlaidRefused) -> bool:
    return refusal.error_type == "ITEM_ERROR" or refusal.error_code in _STOPPED


def _limited(wait_s: float, **more: object) -> Problem:
    again_s = math.ceil(wait_s)
    detail = f"Plaid allows no other request for this item's balances now; the next is possible in {again_s} s"
    headers = {"Retry-After": str(again_s)}
    return Problem(HTTPStatus.TOO_MANY_REQUESTS, "balance_limit", detail, headers=headers, more=more)


def _down(wait_s: float, **more: object) -> Problem:
    headers = {"Retry-After": str(math.ceil(wait_s))}
    detail = "the bank does not answer; what it reported last can be read"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "institution_down", detail, headers=headers, more=more)
