"""Plaid within its quotas, for one pass over one Item: the port Bank. Shell.

Each request takes its tokens first and looks whether the Item is still this pass's; each answer is told to whom it
concerns, the quota's bucket or the bank's breaker.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runtime import logs, plaid_limits
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import NOT_READY, OUTAGE_CODES, AccountsAnswer, ItemAnswer, SyncPage
from runtime.scheduler import quotas
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from streams.ports import Bank, Limits
from streams.sync import plaid_errors
from streams.sync.plaid_errors import Action

Answer = TypeVar("Answer")
_log = logs.logger(__name__)


class LeaseLost(Retry):
    """The lease ended, so another one may work on the Item: nothing more is asked for it."""


class Limited:
    """Plaid, for one pass over one claimed Item.

    `prepaid`: the claim took the tokens of the first page. They are good as long as a request may be on its way:
    older ones are of another minute, and are taken again.
    `claimed_s_ago`: how long ago they were asked for.
    `is_live`: whether the lease's own time is not over. Who was stopped and wakes up makes no request but the one in
    flight.
    """

    def __init__(
        self,
        bank: Bank,
        limits: Limits,
        claimed: Claimed,
        *,
        is_live: Callable[[], bool],
        prepaid: bool = True,
        claimed_s_ago: float = 0.0,
    ) -> None:
        self._bank = bank
        self._limits = limits
        self._claimed = claimed
        self._is_live = is_live
        self._prepaid_until = _now() + quotas.DELAY_S_MAX - claimed_s_ago if prepaid else None
        self._tell_answer = claimed.bank_failing and claimed.institution_id is not None

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """One page of what changed after a cursor."""
        prepaid, self._prepaid_until = self._prepaid_until, None
        paid = prepaid is not None and _now() <= prepaid
        page = await self._ask(plaid_limits.SYNC, lambda: self._bank.sync_page(token, cursor), paid=paid)
        if page.status != NOT_READY:  # an Item without a history is answered whether or not its bank is reached
            await self._answered()
        return page

    async def accounts(self, token: str) -> AccountsAnswer:
        """The accounts with their cached balances."""
        answer = await self._ask(plaid_limits.ACCOUNTS, lambda: self._bank.accounts(token))
        await self._answered()
        return answer

    async def item(self, token: str) -> ItemAnswer:
        """The Item's state. Plaid answers by itself, so this says nothing about the bank."""
        return await self._ask(plaid_limits.ITEM, lambda: self._bank.item(token))

    async def refresh(self, token: str) -> None:
        """Have the bank itself asked. The answer comes before the bank's, and says nothing about it."""
        await self._ask(plaid_limits.REFRESH, lambda: self._bank.refresh(token))

    async def remove(self, token: str) -> None:
        """End the Item."""
        await self._ask(plaid_limits.REMOVE, lambda: self._bank.remove(token))

    async def _ask(self, endpoint: str, ask: Callable[[], Awaitable[Answer]], *, paid: bool = False) -> Answer:
        """Make one request within the limits. Raises: LeaseLost; what it raises itself."""
        self._check_lease()  # who lost it takes no tokens from others
        if not paid:
            await self._limits.take(endpoint, self._claimed.item_id)
            self._check_lease()
        try:
            return await ask()
        except PlaidRefused as refusal:
            await self._refused(endpoint, refusal)
            raise

    def _check_lease(self) -> None:
        if not self._is_live():
            raise LeaseLost(f"the lease of Item {self._claimed.item_id} is over")

    async def _refused(self, endpoint: str, refusal: PlaidRefused) -> None:
        """Tell a refusal to whom it concerns."""
        claimed, code = self._claimed, refusal.error_code
        action = plaid_errors.action(refusal.error_type, code)
        if action is Action.LIMITED:
            await self._tell(self._limits.exceeded(endpoint, claimed.item_id, error_code=code))
        elif code in OUTAGE_CODES and claimed.institution_id is not None:
            await self._tell(self._limits.institution_failed(claimed.institution_id, error_code=code))
        elif action is Action.USER:  # the bank itself refused this user
            await self._answered()

    async def _answered(self) -> None:
        """Tell once in a pass that the bank was reached, where that is news."""
        if self._tell_answer and self._claimed.institution_id is not None:
            self._tell_answer = False
            await self._tell(self._limits.institution_answered(self._claimed.institution_id))

    async def _tell(self, telling: Awaitable[None]) -> None:
        """What cannot be told now is told by the next answer; this one goes on to the pass."""
        try:
            await telling
        except Retry as error:
            _log.warning("limits not told", item_id=self._claimed.item_id, reason=str(error))


def _now() -> float:
    """The event loop's time, so that a simulation's goes with its other waits."""
    return asyncio.get_running_loop().time()
