"""Send the requests about an Item beside the sync: state, accounts, refresh by the bank, and removal. Shell.

Wrong API keys, or those of another environment, are answered as if every Item were gone. So no Item counts as gone
while too many others are called gone with it.
"""

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.plaid.item_models import parse_time
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from schemas.events import GONE, SYNCABLE_STATES
from schemas.log.records import Account
from streams import metrics
from streams.ports import LeaseLost, Store, SyncContext
from streams.sync import backoff, plaid_errors
from streams.sync.changeset_writer import ChangesetWriter
from streams.sync.outcomes import error_fields
from streams.sync.plaid_errors import REMOVED_CODES, TOKEN_UNKNOWN, ItemState

MANUAL = "manual"
"""`kind` of the cause of a sync run that a person requested: its answer includes the age of the bank's data."""
OPTIONAL_S_MAX = 10.0
"""Longest wait for an answer that the sync does not need. A second refresh within a minute has no token for a minute,
so a longer wait would fill the slots in which all others sync; a shorter one would give up on a slow answer."""
GONE_MIN, GONE_SHARE = 10, 0.2
"""This many Items, and this share of all, gone within an hour are no coincidence: sandbox keys on a production database
are answered so for every Item."""

Answer = TypeVar("Answer")
_log = logs.logger(__name__)


class TooManyGone(Retry):
    """Plaid calls an Item gone, and too many others with it; hours later the two cases differ."""


class ItemClient:
    """Requests about one Item within one sync run, with the parts of the answers that its row keeps."""

    def __init__(self, context: SyncContext, claimed: Claimed, token: str, writer: ChangesetWriter) -> None:
        self._context = context
        self._bank = context.bank
        self._claimed = claimed
        self._token = token
        self._writer = writer
        self.accounts_read = False
        self.bank_asked = False
        self.bank_updated_at: datetime | None = None
        self.refreshed = False
        self.refresh_error: dict[str, Any] | None = None

    async def read_state(self) -> ItemState | None:
        """Return the Item's state where there is a reason to ask: a hint, a bad state before, or a manual request.

        None: as before. Without a hint or a bad state the answer is optional, and the sync goes on without it.
        Raises: PlaidRefused, Retry.
        """
        tip, hints = self._writer.tip, self._claimed.hints
        is_due = bool(hints) or tip.state not in SYNCABLE_STATES
        if not is_due and self._claimed.cause.kind != MANUAL:
            return None
        request = self._bank.item(self._token)
        try:
            answer = await (request if is_due else _bounded(request))
        except PlaidRefused as refusal:
            if is_due or plaid_errors.classify(refusal.error_type, refusal.error_code) in plaid_errors.STOPPING:
                return state_after(refusal)
            _log.warning("state not read", item_id=self._claimed.item_id, reason=str(refusal))
            return None
        except Retry as error:
            if is_due or isinstance(error, LeaseLost):
                raise
            _log.warning("state not read", item_id=self._claimed.item_id, reason=str(error))
            return None
        self.bank_asked, self.bank_updated_at = True, parse_time(answer.last_successful_update)
        if answer.request_id:
            self._writer.request_ids.append(answer.request_id)
        return plaid_errors.item_state(answer, hints, known_state=tip.state, known_code=tip.code)

    async def refresh(self) -> None:
        """Have Plaid refresh from the bank; a failure is kept in `refresh_error`, and the sync goes on.

        Raises: PlaidRefused, where the refusal is a state of the Item; LeaseLost.
        """
        try:
            await _bounded(self._bank.refresh(self._token))
        except PlaidRefused as refusal:
            if plaid_errors.classify(refusal.error_type, refusal.error_code) in plaid_errors.BROKEN:
                raise
            code, request_id = refusal.error_code, refusal.request_id
            self.refresh_error = error_fields(code, "transactions/refresh", request_id=request_id)
        except LeaseLost:
            raise
        except Retry as error:
            self.refresh_error = error_fields("late", f"transactions/refresh: {error}")
        self.refreshed = self.refresh_error is None
        metrics.REFRESHES.labels("accepted" if self.refreshed else "refused").inc()

    async def read_accounts(self) -> dict[str, Account]:
        """Return all accounts by their ids. Raises: PlaidRefused, Retry."""
        answer = await self._bank.accounts(self._token)
        self.accounts_read = True
        if answer.request_id:
            self._writer.request_ids.append(answer.request_id)
        return {account.account_id: account for account in answer.accounts}

    async def read_accounts_if_due(self, *, required: bool = False) -> dict[str, Account]:
        """Return all accounts once a day, or where a webhook or `required` asks; a sync has only those with changes.

        Empty where Plaid gives none: the transactions are appended without them, and the next sync run asks again.
        """
        claimed = self._claimed
        max_age = timedelta(seconds=self._context.accounts_interval_s)
        is_fresh = claimed.accounts_at is not None and self._context.clock() - claimed.accounts_at < max_age
        if self.accounts_read or (is_fresh and not (required or claimed.accounts_wanted)):
            return {}
        try:
            return await self.read_accounts()
        except LeaseLost:
            raise
        except (PlaidRefused, Retry) as error:
            _log.warning("accounts not read", item_id=claimed.item_id, reason=str(error))
            return {}

    async def remove(self) -> str | None:
        """Remove an Item at Plaid. Return None, or the code of a refusal that counts as removed.

        A code that names the Item counts at once. An unknown token counts

        - at once, for an Item that the log holds and that was not gone: its token was good, and a sync run that died
          before its append has removed it;
        - for any other after ATTEMPTS_MAX attempts, which are hours apart: the token may be lost while its Item lives,
          and no further attempt with it could end that;

        and both only while Plaid does not answer so for many Items.
        Raises: PlaidRefused, Retry, TooManyGone.
        """
        try:
            await self._bank.remove(self._token)
        except PlaidRefused as refusal:
            code, attempts, tip = refusal.error_code, self._claimed.attempts + 1, self._writer.tip
            if code in REMOVED_CODES:
                return code
            was_good = tip.head is not None and tip.state != GONE
            if code != TOKEN_UNKNOWN or not (was_good or attempts >= backoff.ATTEMPTS_MAX):
                raise
            await check_gone_share(self._context.store)
            _log.warning("refusal counts as removal", item_id=self._claimed.item_id, code=code, attempts=attempts)
            return code
        return None


async def check_gone_share(store: Store) -> None:
    """Check that few Items are called gone, so that wrong keys end no living Items.

    The process goes on: ten Items that really are gone would otherwise stop the syncs of all others for the hour,
    restart after restart.
    Raises: TooManyGone.
    """
    gone, items = await store.count_gone()
    if gone + 1 >= max(GONE_MIN, items * GONE_SHARE):
        raise TooManyGone(f"Plaid calls {gone + 1} of {items} Items gone within an hour: are its keys the right ones?")


async def _bounded(request: Awaitable[Answer]) -> Answer:
    """Wait for an optional answer. Raises: Retry, where it takes longer than OPTIONAL_S_MAX."""
    try:
        return await asyncio.wait_for(request, OPTIONAL_S_MAX)
    except TimeoutError:
        raise Retry(f"no answer or no room in the quota within {OPTIONAL_S_MAX:g} s") from None


def state_after(refusal: PlaidRefused) -> ItemState:
    """Return the state of an Item after a refusal. Raises: the refusal, where it is no state of an Item."""
    error_class = plaid_errors.classify(refusal.error_type, refusal.error_code)
    if error_class not in plaid_errors.STOPPING:
        raise refusal
    return plaid_errors.stopped_state(error_class, refusal.error_code, refusal.reason)
