"""Limit the requests of one sync run by Plaid's quotas, the bank's breaker and the lease: the port PlaidApi. Shell.

Each request first takes its tokens and checks the lease; each answer updates the quota's bucket or the bank's breaker.
"""

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from runtime import logs, plaid_limits
from runtime.plaid.client import PlaidRefused
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import NOT_READY, OUTAGE_CODES, AccountsAnswer, SyncPage
from runtime.scheduler import quotas
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from streams.ports import LeaseLost, Limits, PlaidApi
from streams.sync import plaid_errors
from streams.sync.plaid_errors import ErrorClass

Answer = TypeVar("Answer")
_log = logs.logger(__name__)


class RateLimitedPlaid:
    """Plaid, for one sync run over one claimed Item.

    The claim took the tokens of the first page, `claimed_s_ago` seconds ago. They count as long as a request may be on
    its way; older ones belong to another minute and are taken again.
    `is_live`: whether the lease still holds. A process that stood still sends no further request.
    """

    def __init__(
        self,
        bank: PlaidApi,
        limits: Limits,
        claimed: Claimed,
        *,
        is_live: Callable[[], bool],
        claimed_s_ago: float = 0.0,
    ) -> None:
        self._bank = bank
        self._limits = limits
        self._claimed = claimed
        self._is_live = is_live
        self._prepaid_until = _now() + quotas.DELAY_S_MAX - claimed_s_ago
        self._reports_answer = claimed.bank_failing and claimed.institution_id is not None

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """Return one page of the changes after a cursor."""
        prepaid_until, self._prepaid_until = self._prepaid_until, -inf
        is_paid = _now() <= prepaid_until
        page = await self._request(plaid_limits.SYNC, lambda: self._bank.sync_page(token, cursor), is_paid=is_paid)
        if page.status != NOT_READY:  # without a history Plaid answers whether or not the bank is reached
            await self._report_answer()
        return page

    async def accounts(self, token: str) -> AccountsAnswer:
        """Return the accounts with their cached balances."""
        answer = await self._request(plaid_limits.ACCOUNTS, lambda: self._bank.accounts(token))
        await self._report_answer()
        return answer

    async def item(self, token: str) -> ItemAnswer:
        """Return the Item's state; Plaid answers by itself, so this is no answer of the bank."""
        return await self._request(plaid_limits.ITEM, lambda: self._bank.item(token))

    async def refresh(self, token: str) -> None:
        """Have Plaid refresh from the bank; the answer comes before the bank's and is none of it."""
        await self._request(plaid_limits.REFRESH, lambda: self._bank.refresh(token))

    async def remove(self, token: str) -> None:
        """Remove the Item."""
        await self._request(plaid_limits.REMOVE, lambda: self._bank.remove(token))

    async def _request(self, endpoint: str, send: Callable[[], Awaitable[Answer]], *, is_paid: bool = False) -> Answer:
        self._check_lease()  # a worker without the lease takes no tokens from others
        if not is_paid:
            await self._limits.take(endpoint, self._claimed.item_id)
            self._check_lease()
        try:
            return await send()
        except PlaidRefused as refusal:
            await self._report_refusal(endpoint, refusal)
            raise

    def _check_lease(self) -> None:
        if not self._is_live():
            raise LeaseLost(f"the lease of Item {self._claimed.item_id} is over")

    async def _report_refusal(self, endpoint: str, refusal: PlaidRefused) -> None:
        claimed, code = self._claimed, refusal.error_code
        error_class = plaid_errors.classify(refusal.error_type, code)
        if error_class is ErrorClass.RATE_LIMIT:
            await self._report(self._limits.exceeded(endpoint, claimed.item_id, error_code=code))
        elif code in OUTAGE_CODES and claimed.institution_id is not None:
            await self._report(self._limits.institution_failed(claimed.institution_id, error_code=code))
        elif error_class is ErrorClass.USER_ACTION:  # the bank itself refused this user
            await self._report_answer()

    async def _report_answer(self) -> None:
        """Report once in a sync run that the bank answered, where it had failed lately."""
        if self._reports_answer and self._claimed.institution_id is not None:
            self._reports_answer = False
            await self._report(self._limits.institution_answered(self._claimed.institution_id))

    async def _report(self, report: Awaitable[None]) -> None:
        """Await a report; a failed one is lost: the sync run goes on, and its next answer is reported too."""
        try:
            await report
        except Retry as error:
            _log.warning("answer not reported", item_id=self._claimed.item_id, reason=str(error))


def _now() -> float:
    """Return the event loop's time, so that a simulation's virtual time counts here too."""
    return asyncio.get_running_loop().time()
