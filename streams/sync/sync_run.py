"""One pass over a claimed Item: unlink it, or link, ask its state, have its bank asked, sync. Shell."""

from collections.abc import Collection

import msgspec

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import SyncPage
from runtime.retry import insist
from runtime.scheduler.types import Claimed, Released
from schemas.events import (
    ACTIVE,
    GONE,
    REFUSED,
    SYNCABLE_STATES,
    TRANSACTION_ADDED,
    TRANSACTION_MODIFIED,
    TRANSACTION_REMOVED,
    UNLINKED,
)
from schemas.log import gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account
from streams import metrics
from streams.ports import SyncContext
from streams.sync import backoff, changeset, full_resync, outcomes, plaid_errors, unlink
from streams.sync.changeset import Draft, Events
from streams.sync.changeset_writer import Chain, off_loop
from streams.sync.item_client import Asking, said, stopped_state
from streams.sync.page_reader import read_update
from streams.sync.pages import Update, fold
from streams.sync.plaid_errors import Action, ItemState
from streams.sync.unlink import check_share_gone

CURSOR, MUTATION, INCOMPLETE = "cursor", "mutation", "incomplete"
"""Why a whole history is read: Plaid refuses the cursor, no update after it ever ends, or the last one that was read
lacked an account, which is back."""

_log = logs.logger(__name__)


class Pass:
    """A pass over one Item. What it did so far can be read from it, also after it failed."""

    def __init__(self, world: SyncContext, claimed: Claimed, keys: UserKeys, token: str) -> None:
        self._world = world
        self._claimed = claimed
        self._token = token
        self.chain = Chain(world, claimed, keys)
        self.asked = Asking(world, claimed, token, self.chain)
        self.pages = 0

    async def run(self) -> Released | None:
        """Do what the Item needs; None where nothing of it is left to schedule.

        Raises: PlaidRefused, Retry, TooManyGone, Quarantine; InDoubt after an append without an answer; Halt.
        """
        if self._claimed.unlink_requested:
            return await self._unlink()
        if self.chain.tip.head is None:
            await self._link()
        state = await self.asked.state()
        if (state.state if state else self.chain.tip.state) not in SYNCABLE_STATES:
            return await self.stop(state)
        if self._claimed.refresh_wanted:
            await self.asked.refresh()
        return await self._sync(state)

    async def stop(self, state: ItemState | None) -> Released:
        """Tell the state that ends syncing; nothing is scheduled until it changes."""
        told = await self._tell(state)
        tip = self.chain.tip
        return Released(
            outcome="stopped",
            done=True,
            stopped=tip.state,
            error=said(tip.code or str(tip.state), "the Item's state"),
            hints_until=None if told else self.chain.hints_until,
        )

    async def _link(self) -> None:
        """Append the root of the Item's chain, with its accounts where Plaid gives them."""
        accounts: dict[str, Account] = {}
        state = ItemState(ACTIVE)
        try:
            accounts = await self.asked.accounts()
        except PlaidRefused as refusal:
            state = stopped_state(refusal)
            await self._check_share(state)
        events = changeset.linked(self.chain.subject, state) + changeset.balances(accounts)
        await self.chain.append(Draft(gate.LINK, events, self.chain.prints(accounts), state=state))

    async def _sync(self, state: ItemState | None) -> Released:
        seen: dict[str, Account] = {}
        if self._claimed.history_incomplete and self.chain.tip.cursor is not None:
            seen = await self.asked.accounts_if_due(wanted=True)
            if seen and self._names_all(seen):
                return await self._restate(state, seen, because=INCOMPLETE)
        try:
            pages = await self._read(self.chain.tip.cursor)
        except PlaidRefused as refusal:
            because = self._lost_by(refusal)
            if because is None:
                raise
            return await self._restate(state, seen or await self.asked.accounts(), because=because)
        if not pages:
            return await self._wait_for_history(state, attempts=0)
        update = fold(pages, fresh=self.chain.tip.cursor is None)
        self.chain.request_ids += update.request_ids
        accounts = {**update.accounts, **seen, **await self.asked.accounts_if_due()}
        events = await off_loop(len(update.changes), lambda: changeset.transactions(update.changes))
        return await self._finish(self._draft(gate.SYNC, update, events, accounts, state))

    def _names_all(self, accounts: Collection[str]) -> bool:
        """Whether these are all accounts that the chain knows, or more."""
        return set(self.chain.tip.fingerprints) <= {self.chain.pseudonym(name) for name in accounts}

    async def _read(self, cursor: str | None) -> list[SyncPage]:
        world = self._world
        pages = await read_update(world.bank, self._token, cursor, sleep=world.sleep, random=world.random)
        self.pages = len(pages)
        return pages

    def _lost_by(self, refusal: PlaidRefused) -> str | None:
        """What makes the chain's cursor a lost one; None where it is none. Source: PLAID.md 1.2, points 7 and 8."""
        if self.chain.tip.cursor is None:
            return None
        match plaid_errors.action(refusal.error_type, refusal.error_code, with_cursor=True):
            case Action.CURSOR:
                return CURSOR
            case Action.RESTART if self._claimed.attempts + 1 >= backoff.ATTEMPTS_MAX:
                return MUTATION
        return None

    async def _restate(self, state: ItemState | None, before: Collection[str], *, because: str) -> Released:
        """Read the whole history from no cursor and append it as the one record that replaces what is known.

        The accounts are asked for before and after: one that comes or goes meanwhile is missing from one of the two,
        so that nothing is concluded about it. `before`: ids of those that Plaid named in this pass, before the read.
        Raises: PlaidRefused, Retry: without accounts or history there is no record.
        """
        _log.warning("whole history is read", item_id=self._claimed.item_id, because=because)
        pages = await self._read(None)
        update = fold(pages, fresh=True) if pages else None
        if update is None or not (
            full_resync.is_whole(update) or self._claimed.not_ready >= backoff.HISTORY_ANSWERS_MAX
        ):
            return await self._wait_for_history(state, attempts=outcomes.attempts_at_history(self._claimed))
        self.chain.request_ids += update.request_ids
        named = {name: account for name, account in (await self.asked.accounts()).items() if name in before}
        covered = full_resync.history(
            update,
            named,
            known=self.chain.tip.fingerprints,
            today=self._world.clock().date(),
            pseudonyms={name: self.chain.pseudonym(name) for name in named},
            days_requested=self._world.days_requested,
            removals_share_max=self._world.removals_share_max,
        )
        events = await off_loop(len(update.changes), lambda: full_resync.events(covered, update))
        draft = self._draft(gate.RESTATED, update, events, {**update.accounts, **named}, state)
        # By the accounts that a head prints, follow_heads knows which the history lacked.
        released = await self._finish(draft._replace(fingerprints=self.chain.prints(named)))
        metrics.RESTATED.labels(because, "yes" if covered.complete else "no").inc()
        return outcomes.restated(self._claimed, released, because=because, jitter=self._world.random())

    async def _wait_for_history(self, state: ItemState | None, *, attempts: int) -> Released:
        """Tell the state, and come back for what Plaid has not read yet."""
        told = await self._tell(state)
        result = outcomes.not_ready(self._claimed, jitter=self._world.random(), attempts=attempts)
        return result if told else msgspec.structs.replace(result, hints_until=self.chain.hints_until)

    async def _finish(self, draft: Draft) -> Released:
        appended = await self.chain.append_if_news(draft)
        return Released(
            outcome="appended" if appended else "unchanged",
            done=True,
            synced=True,
            due_in_s=backoff.REFRESHED_S if self.asked.refreshed else None,
            error=self.asked.not_refreshed,
            hints_until=None if appended else self.chain.hints_until,
        )

    def _draft(
        self, kind: str, update: Update, events: Events, accounts: dict[str, Account], state: ItemState | None
    ) -> Draft:
        news = self._news_of(state)
        changed = [] if news is None else changeset.state_changed(self.chain.subject, news, update.status)
        return Draft(
            kind,
            events + changeset.balances(accounts) + changed,
            self.chain.prints(accounts),
            update.next_cursor,
            news,
            update.status,
        )

    async def _unlink(self) -> Released | None:
        """End the Item at Plaid, then in the log; its token goes once the log's readers have accepted that."""
        world, chain = self._world, self.chain
        code = await unlink.remove(world.bank, world.store, self._claimed, self._token, chain.tip)
        if chain.tip.head is None:  # nothing of it is in the log
            await insist(lambda: world.store.finish_unlink(self._claimed), what="finish_unlink")
            return None
        await chain.append(Draft(gate.UNLINK, changeset.unlinked(chain.subject), state=ItemState(UNLINKED)))
        error = None if code is None else said(code, "taken for removed")
        return Released(outcome="unlinked", done=False, due_in_s=0.0, error=error)

    async def _tell(self, state: ItemState | None) -> bool:
        """Append a state if it is news."""
        await self._check_share(state)
        news, chain = self._news_of(state), self.chain
        if news is None:
            return False
        changed = changeset.state_changed(chain.subject, news, chain.tip.history_status)
        return await chain.append_if_news(Draft(gate.STATE, changed, state=news))

    def _news_of(self, state: ItemState | None) -> ItemState | None:
        tip = self.chain.tip
        if state is None or (not state.told and (state.state, state.code) == (tip.state, tip.code)):
            return None
        return state

    async def _check_share(self, state: ItemState | None) -> None:
        """Our own mistake can end many Items at once, too: a request that is suddenly wrong is wrong for all."""
        if state is not None and state.state in (GONE, REFUSED) and self.chain.tip.state != state.state:
            await check_share_gone(self._world.store)


def tallied(result: Released, made: Pass) -> Released:
    """What became of a pass, with what it did until then."""
    counts = made.chain.counts
    return msgspec.structs.replace(
        result,
        wait_offset=made.chain.offset,
        accounts_read=made.asked.accounts_read,
        bank_asked=made.asked.bank_asked,
        bank_updated_at=made.asked.bank_updated_at,
        refreshed=made.asked.refreshed,
        pages=made.pages,
        added=counts.get(TRANSACTION_ADDED, 0),
        modified=counts.get(TRANSACTION_MODIFIED, 0),
        removed=counts.get(TRANSACTION_REMOVED, 0),
    )
