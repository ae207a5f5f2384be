"""One pass over a claimed Item: unlink it, or link, ask its state, sync. Shell.

Several records of one pass chain on each other without waiting for the follower.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, TypeVar

import msgspec

from runtime import logs
from runtime.crash_points import CrashPoint, reach
from runtime.dues import Claimed, Released
from runtime.plaid import PlaidRefused
from schemas import gate
from schemas.changesets import UserKeys
from schemas.errors import Quarantine, Retry
from schemas.events import (
    ACTIVE,
    GONE,
    SYNCABLE_STATES,
    TRANSACTION_ADDED,
    TRANSACTION_MODIFIED,
    TRANSACTION_REMOVED,
    UNLINKED,
)
from schemas.records import Account
from streams import changeset, classify, failures, metrics
from streams.changeset import Draft, Events, Sealed, Subject
from streams.classify import Action, ItemState
from streams.insisting import insist
from streams.pages import Update, fold
from streams.ports import Bank, Clock, Log, Nonce, Random, Sleep, Store
from streams.sync_loop import read_update

CHANGES_ON_LOOP_MAX = 500
"""Changes encoded on the event loop, about 5 ms; more are encoded in a thread, so that webhooks do not wait."""
REQUEST_IDS_MAX = 20
"""Of Plaid's request ids kept in a head: those of the last pages, about 16 bytes each."""
GONE_MIN, GONE_SHARE = 10, 0.2
"""So many Items, and this share of all, gone within an hour are no coincidence: sandbox keys on a production
database answer so for every Item."""

Result = TypeVar("Result")
_log = logs.logger(__name__)


class Unrecordable(Quarantine):
    """No record can be made of this update, however often it is read."""


class TooManyGone(Retry):
    """Plaid calls an Item gone, and too many others with it: in hours it can be told which of them are."""


class World(NamedTuple):
    """What passes are made in."""

    bank: Bank
    log: Log
    store: Store
    clock: Clock
    sleep: Sleep
    random: Random
    nonce: Nonce
    accounts_interval_s: float


class Pass:
    """A pass over one Item. What it did so far can be read from it, also after it failed."""

    def __init__(self, world: World, claimed: Claimed, keys: UserKeys, token: str) -> None:
        self._world = world
        self._claimed = claimed
        self._keys = keys
        self._token = token
        self._tip = changeset.tip_of(claimed.head)
        self._request_ids: list[str] = []
        self._hints_until = claimed.hints[-1].offset if claimed.hints else None
        self._subject = Subject(
            claimed.item_id,
            claimed.user,
            claimed.cause,
            claimed.institution_id,
            claimed.institution_name,
            fetch_started_at=world.clock(),
        )
        self.offset: int | None = None
        self.accounts_read = False
        self.pages = 0
        self.counts: dict[str, int] = {}

    async def run(self) -> Released | None:
        """Do what the Item needs; None where nothing of it is left to schedule.

        Raises: PlaidRefused, Retry, TooManyGone, Quarantine; InDoubt after an append without an answer; Halt.
        """
        if self._claimed.unlink_requested:
            return await self._unlink()
        if self._tip.head is None:
            await self._link()
        state = await self._asked_state()
        if (state.state if state else self._tip.state) not in SYNCABLE_STATES:
            return await self.stop(state)
        return await self._sync(state)

    async def stop(self, state: ItemState | None) -> Released:
        """Tell the state that ends syncing; nothing is scheduled until it changes."""
        told = await self._tell(state)
        stopped = self._tip.state
        return Released(
            outcome="stopped", done=True, stopped=stopped, hints_until=None if told else self._hints_until
        )  # fmt: skip

    async def _link(self) -> None:
        """Append the root of the Item's chain, with its accounts where Plaid gives them."""
        accounts: dict[str, Account] = {}
        state = ItemState(ACTIVE)
        try:
            accounts = await self._accounts()
        except PlaidRefused as refusal:
            if self.action_after(refusal) not in (Action.USER, Action.GONE):
                raise
            state = classify.refused_state(refusal.error_code, refusal.reason)
            await self._check_gone(state)
        events = changeset.linked(self._subject, state) + changeset.balances(accounts)
        await self._append(Draft(gate.LINK, events, self._prints(accounts), state=state))

    async def _asked_state(self) -> ItemState | None:
        """The Item's state where there is a reason to ask: a hint, or that it was no good one. None: as it was."""
        if not self._claimed.hints and self._tip.state in SYNCABLE_STATES:
            return None
        try:
            answer = await self._world.bank.item(self._token)
        except PlaidRefused as refusal:
            if self.action_after(refusal) not in (Action.USER, Action.GONE):
                raise
            return classify.refused_state(refusal.error_code, refusal.reason)
        if answer.request_id:
            self._request_ids.append(answer.request_id)
        return classify.item_state(
            answer, self._claimed.hints, known_state=self._tip.state, known_code=self._tip.code
        )  # fmt: skip

    async def _sync(self, state: ItemState | None) -> Released:
        world = self._world
        pages = await read_update(
            world.bank, self._token, self._tip.cursor, sleep=world.sleep, random=world.random
        )  # fmt: skip
        if not pages:
            told = await self._tell(state)
            result = failures.not_ready(self._claimed, jitter=world.random())
            return result if told else msgspec.structs.replace(result, hints_until=self._hints_until)
        self.pages = len(pages)
        update = fold(pages, fresh=self._tip.cursor is None)
        self._request_ids += update.request_ids
        accounts = {**update.accounts, **await self._accounts_if_due()}
        events = await self._off_loop(len(update.changes), lambda: changeset.transactions(update.changes))
        appended = await self._append_if_news(self._sync_draft(update, accounts, events, state))
        return Released(
            outcome="appended" if appended else "unchanged",
            done=True,
            synced=True,
            hints_until=None if appended else self._hints_until,
        )

    def _sync_draft(
        self, update: Update, accounts: dict[str, Account], events: Events, state: ItemState | None
    ) -> Draft:  # fmt: skip
        news = self._news_of(state)
        said = [] if news is None else changeset.state_changed(self._subject, news, update.status)
        return Draft(
            gate.SYNC,
            events + changeset.balances(accounts) + said,
            self._prints(accounts),
            update.next_cursor,
            news,
            update.status,
        )

    def action_after(self, refusal: PlaidRefused) -> Action:
        """What an error of Plaid's asks for, here."""
        return classify.action(refusal.error_type, refusal.error_code, with_cursor=self._tip.cursor is not None)

    async def _unlink(self) -> Released | None:
        """End the Item at Plaid, then in the log; its token goes once the log's readers have accepted that."""
        try:
            await self._world.bank.remove(self._token)
        except PlaidRefused as refusal:
            if not await self._is_removed(refusal):
                raise
        if self._tip.head is None:  # nothing of it is in the log
            await insist(lambda: self._world.store.finish_unlink(self._claimed), what="finish_unlink")
            return None
        await self._append(Draft(gate.UNLINK, changeset.unlinked(self._subject), state=ItemState(UNLINKED)))
        return Released(outcome="unlinked", done=False, due_in_s=0.0)

    async def _is_removed(self, refusal: PlaidRefused) -> bool:
        """Whether a refused removal finds the Item removed already, by a pass that died before its append.

        Plaid may then know only that the token is none. That is believed of an Item that the log holds and that was
        not gone, so its token was good, and while Plaid does not answer so for many: a token that was thrown away
        while its Item lives could never end what that Item costs.
        Raises: TooManyGone.
        """
        if classify.is_removed(refusal.error_code):
            return True
        if not classify.is_token_unknown(refusal.error_code) or self._tip.head is None or self._tip.state == GONE:
            return False
        await self._check_share_gone()
        return True

    async def _accounts(self) -> dict[str, Account]:
        answer = await self._world.bank.accounts(self._token)
        self.accounts_read = True
        if answer.request_id:
            self._request_ids.append(answer.request_id)
        return {account.account_id: account for account in answer.accounts}

    async def _accounts_if_due(self) -> dict[str, Account]:
        """All accounts, daily and where a webhook spoke of them; a sync names only those with transactions."""
        claimed = self._claimed
        age = timedelta(seconds=self._world.accounts_interval_s)
        fresh = claimed.accounts_at is not None and self._world.clock() - claimed.accounts_at < age
        if self.accounts_read or (fresh and not claimed.accounts_wanted):
            return {}
        try:
            return await self._accounts()
        except (PlaidRefused, Retry) as error:
            # The transactions are worth keeping without them; they stay wanted, and the next pass asks again.
            _log.warning("accounts not read", item_id=claimed.item_id, reason=str(error))
            return {}

    async def _tell(self, state: ItemState | None) -> bool:
        """Append a state if it is news."""
        await self._check_gone(state)
        news = self._news_of(state)
        if news is None:
            return False
        return await self._append_if_news(
            Draft(gate.STATE, changeset.state_changed(self._subject, news, self._tip.history_status), state=news)
        )

    def _news_of(self, state: ItemState | None) -> ItemState | None:
        if state is None or (not state.told and (state.state, state.code) == (self._tip.state, self._tip.code)):
            return None
        return state

    async def _check_gone(self, state: ItemState | None) -> None:
        if state is not None and state.state == GONE and self._tip.state != GONE:
            await self._check_share_gone()

    async def _check_share_gone(self) -> None:
        """While too many Items are called gone, none is: wrong keys must not end Items that live.

        The process goes on: ten Items that really are gone would otherwise stop the syncs of all others for the
        hour, restart after restart.
        Raises: TooManyGone.
        """
        gone, items = await self._world.store.gone_lately()
        if gone + 1 >= max(GONE_MIN, items * GONE_SHARE):
            raise TooManyGone(
                f"Plaid calls {gone + 1} of {items} Items gone within an hour: are its keys the right ones?"
            )

    async def _append_if_news(self, draft: Draft) -> bool:
        if not changeset.is_news(self._tip, draft, now=self._world.clock()):
            return False
        await self._append(draft)
        return True

    async def _append(self, draft: Draft) -> None:
        kept_ids = self._request_ids[-REQUEST_IDS_MAX:]
        cause = msgspec.structs.replace(self._claimed.cause, request_ids=kept_ids)
        # Only the record that tells what a hint led to has dealt with it; a root comes before anything was asked.
        until = None if draft.type == gate.LINK else self._hints_until
        subject = self._subject._replace(cause=cause, hints_until=until)
        sealed = await self._off_loop(len(draft.events), lambda: self._composed(draft, subject))
        reach(CrashPoint.FETCH_BEFORE_APPEND)
        self.offset = await self._world.log.append(self._claimed.partition, sealed.key, sealed.value)
        reach(CrashPoint.FETCH_AFTER_APPEND)
        self._tip = sealed.tip
        self._count(sealed)

    def _composed(self, draft: Draft, subject: Subject) -> Sealed:
        """Raises: Unrecordable, where the update is too large for one record: this is where it becomes parts."""
        world = self._world
        try:
            return changeset.compose(draft, subject, self._tip, self._keys, at=world.clock(), nonce=world.nonce())
        except Quarantine as error:
            raise Unrecordable(str(error)) from error

    def _count(self, sealed: Sealed) -> None:
        for kind, count in sealed.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            metrics.CHANGES.labels(kind).inc(count)
        received_at = self._claimed.cause.webhook_received_at
        if received_at is not None:
            late_s = self._world.clock().timestamp() - received_at / 1e6
            metrics.WEBHOOK_TO_CHANGESET.observe(max(late_s, 0.0))

    def _prints(self, accounts: dict[str, Account]) -> dict[str, bytes]:
        return {
            changeset.pseudonym(name, self._keys): changeset.fingerprint(account, self._keys)
            for name, account in accounts.items()
        }

    async def _off_loop(self, changes: int, work: Callable[[], Result]) -> Result:
        return work() if changes <= CHANGES_ON_LOOP_MAX else await asyncio.to_thread(work)


def tallied(result: Released, made: Pass) -> Released:
    """What became of a pass, with what it did until then."""
    return msgspec.structs.replace(
        result,
        wait_offset=made.offset,
        accounts_read=made.accounts_read,
        pages=made.pages,
        added=made.counts.get(TRANSACTION_ADDED, 0),
        modified=made.counts.get(TRANSACTION_MODIFIED, 0),
        removed=made.counts.get(TRANSACTION_REMOVED, 0),
    )
