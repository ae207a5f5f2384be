"""What Plaid is asked about an Item beside the sync: its state, its accounts, and to ask the bank itself. Shell."""

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import ItemAnswer
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from schemas.events import SYNCABLE_STATES
from schemas.log.records import Account
from streams import metrics
from streams.limits.rate_limited import LeaseLost
from streams.ports import SyncContext
from streams.sync import plaid_errors
from streams.sync.changeset_writer import Chain
from streams.sync.plaid_errors import Action, ItemState

MANUAL = "manual"
"""`kind` of the cause of a pass that somebody asked for: how fresh the bank's data is belongs to its answer."""
REASON_CHARACTERS_MAX = 300
BESIDE_S_MAX = 10.0
"""Longest wait for what the sync can do without. A second refresh within a minute has no token for a minute, and who
asks for many would hold the slots that all others sync in; a shorter wait would give up on a slow answer of Plaid's."""

Answer = TypeVar("Answer")
_log = logs.logger(__name__)


class Asking:
    """What is asked within one pass, and what of it was answered."""

    def __init__(self, world: SyncContext, claimed: Claimed, token: str, chain: Chain) -> None:
        self._bank = world.bank
        self._clock = world.clock
        self._accounts_interval_s = world.accounts_interval_s
        self._claimed = claimed
        self._token = token
        self._chain = chain
        self.accounts_read = False
        self.bank_asked = False
        self.bank_updated_at: datetime | None = None
        self.refreshed = False
        self.not_refreshed: dict[str, Any] | None = None

    async def state(self) -> ItemState | None:
        """The Item's state where there is a reason to ask: a hint, that it was no good one, or that a person waits.

        None: as it was.
        """
        tip, hints = self._chain.tip, self._claimed.hints
        is_due = bool(hints) or tip.state not in SYNCABLE_STATES
        if not is_due and self._claimed.cause.kind != MANUAL:
            return None
        try:
            answer = await (self._bank.item(self._token) if is_due else _beside(self._bank.item(self._token)))
        except PlaidRefused as refusal:
            if is_due or action_after(refusal) in plaid_errors.STOPPING:
                return stopped_state(refusal)
            self._not_fresh(refusal)
            return None
        except Retry as error:
            if is_due or isinstance(error, LeaseLost):
                raise
            self._not_fresh(error)
            return None
        self._heard(answer)
        return plaid_errors.item_state(answer, hints, known_state=tip.state, known_code=tip.code)

    def _heard(self, answer: ItemAnswer) -> None:
        self.bank_asked, self.bank_updated_at = True, plaid_errors.bank_updated_at(answer)
        if answer.request_id:
            self._chain.request_ids.append(answer.request_id)

    def _not_fresh(self, error: PlaidRefused | Retry) -> None:
        """How fresh the data is was asked for beside the sync: without an answer the sync goes on."""
        _log.warning("freshness not read", item_id=self._claimed.item_id, reason=str(error))

    async def refresh(self) -> None:
        """Have the bank itself asked. Where that is refused or fails the sync goes on, and the attempt says so.

        Raises: PlaidRefused, where the refusal is a state of the Item.
        """
        try:
            await _beside(self._bank.refresh(self._token))
        except PlaidRefused as refusal:
            if action_after(refusal) in (Action.USER, Action.GONE):
                raise
            self.not_refreshed = said(refusal.error_code, "transactions/refresh", request_id=refusal.request_id)
        except LeaseLost:
            raise
        except Retry as error:
            self.not_refreshed = said("late", f"transactions/refresh: {error}")
        self.refreshed = self.not_refreshed is None
        metrics.REFRESHES.labels("accepted" if self.refreshed else "refused").inc()

    async def accounts(self) -> dict[str, Account]:
        """All accounts by their ids. Raises: PlaidRefused, Retry."""
        answer = await self._bank.accounts(self._token)
        self.accounts_read = True
        if answer.request_id:
            self._chain.request_ids.append(answer.request_id)
        return {account.account_id: account for account in answer.accounts}

    async def accounts_if_due(self, *, wanted: bool = False) -> dict[str, Account]:
        """All accounts, daily and where they are wanted, as by a webhook; a sync names only those with transactions."""
        claimed = self._claimed
        age = timedelta(seconds=self._accounts_interval_s)
        fresh = claimed.accounts_at is not None and self._clock() - claimed.accounts_at < age
        if self.accounts_read or (fresh and not (wanted or claimed.accounts_wanted)):
            return {}
        try:
            return await self.accounts()
        except LeaseLost:
            raise
        except (PlaidRefused, Retry) as error:
            # The transactions are worth keeping without them; they stay wanted, and the next pass asks again.
            _log.warning("accounts not read", item_id=claimed.item_id, reason=str(error))
            return {}


async def _beside(asked: Awaitable[Answer]) -> Answer:
    """Wait for an answer, but not for long. Raises: Retry, where it takes longer; what it raises itself."""
    try:
        return await asyncio.wait_for(asked, BESIDE_S_MAX)
    except TimeoutError:
        raise Retry(f"no answer or no room in the quota within {BESIDE_S_MAX:g} s") from None


def action_after(refusal: PlaidRefused) -> Action:
    """What an error of Plaid's asks for. A cursor that is refused is dealt with where it was sent."""
    return plaid_errors.action(refusal.error_type, refusal.error_code)


def stopped_state(refusal: PlaidRefused) -> ItemState:
    """The state of an Item after a refusal. Raises: the refusal, where it is no state of an Item."""
    action = action_after(refusal)
    if action not in plaid_errors.STOPPING:
        raise refusal
    return plaid_errors.refused_state(action, refusal.error_code, refusal.reason)


def said(code: str, detail: str, *, request_id: str | None = None) -> dict[str, Any]:
    """What `last_error` and `sync_runs` keep: codes and our own words, never Plaid's message or a token."""
    kept = {"code": code, "detail": detail[:REASON_CHARACTERS_MAX]}
    return kept if request_id is None else kept | {"request_id": request_id}
