"""Run one sync of a claimed Item: unlink it, or link it, read its state, refresh it and append what is new. Shell."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import HISTORY_COMPLETE, SyncPage
from runtime.retry import retry_until_done
from runtime.scheduler.types import Claimed, Released
from schemas.events import (
    ACTIVE,
    GONE,
    ITEM_LINKED,
    ITEM_STATE_CHANGED,
    ITEM_UNLINKED,
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
from streams.sync import backoff, full_resync, outcomes, plaid_errors
from streams.sync.changeset import Draft, Events, encode_balances, encode_item, encode_transactions
from streams.sync.changeset_writer import ChangesetWriter, off_loop
from streams.sync.item_client import ItemClient, check_gone_share, state_after
from streams.sync.outcomes import error_fields
from streams.sync.page_reader import read_pages
from streams.sync.pages import Update, merge_pages
from streams.sync.plaid_errors import ErrorClass, ItemState

CURSOR, MUTATION, INCOMPLETE = "cursor", "mutation", "incomplete"
"""Reason of a full resync: Plaid refuses the cursor, no update after it ever ends, or the last full resync lacked an
account, which is back."""

_log = logs.logger(__name__)


class SyncRun:
    """One sync run over one Item. `figures` are those of its result, also after it failed."""

    def __init__(self, context: SyncContext, claimed: Claimed, keys: UserKeys, token: str) -> None:
        self._context = context
        self._claimed = claimed
        self._token = token
        self.writer = ChangesetWriter(context, claimed, keys)
        self.client = ItemClient(context, claimed, token, self.writer)
        self.pages = 0

    async def run(self) -> Released | None:
        """Sync the Item; return None where nothing of it is left to schedule.

        Raises: PlaidRefused, Retry, TooManyGone, Quarantine; InDoubt after an append without an answer; Halt.
        """
        if self._claimed.unlink_requested:
            return await self._unlink()
        if self.writer.tip.head is None:
            await self._link()
        state = await self.client.read_state()
        if (state.state if state else self.writer.tip.state) not in SYNCABLE_STATES:
            return await self.stop(state)
        if self._claimed.refresh_wanted:
            await self.client.refresh()
        return await self._sync(state)

    async def stop(self, state: ItemState | None) -> Released:
        """Append the state that ends syncing; nothing is scheduled until it changes."""
        appended = await self._append_state(state)
        tip = self.writer.tip
        return Released(
            outcome="stopped",
            done=True,
            stopped=tip.state,
            error=error_fields(tip.code or str(tip.state), "the Item's state"),
            hints_until=None if appended else self.writer.hints_until,
        )

    def figures(self) -> dict[str, Any]:
        """Return the figures of this sync run, as fields of its result."""
        client_fields = ("accounts_read", "bank_asked", "bank_updated_at", "refreshed")
        types = {"added": TRANSACTION_ADDED, "modified": TRANSACTION_MODIFIED, "removed": TRANSACTION_REMOVED}
        return {
            **{name: getattr(self.client, name) for name in client_fields},
            **{name: self.writer.counts[event_type] for name, event_type in types.items()},
            "pages": self.pages,
            "wait_offset": self.writer.offset,
        }

    async def _unlink(self) -> Released | None:
        """Remove the Item at Plaid, then end its chain; its token is deleted once the log's readers have accepted."""
        store, writer = self._context.store, self.writer
        code = await self.client.remove()
        if writer.tip.head is None:  # the log has nothing of it
            await retry_until_done(lambda: store.finish_unlink(self._claimed), action="finish_unlink")
            return None
        state = ItemState(UNLINKED)
        await writer.append(Draft(gate.UNLINK, encode_item(ITEM_UNLINKED, writer.subject, state), state=state))
        error = None if code is None else error_fields(code, "taken for removed")
        return Released(outcome="unlinked", done=False, due_in_s=0.0, error=error)

    async def _link(self) -> None:
        """Append the root of the Item's chain, with its accounts where Plaid gives them."""
        writer, state = self.writer, ItemState(ACTIVE)
        accounts: dict[str, Account] = {}
        try:
            accounts = await self.client.read_accounts()
        except PlaidRefused as refusal:
            state = state_after(refusal)
            await self._check_share(state)
        events = encode_item(ITEM_LINKED, writer.subject, state) + encode_balances(accounts)
        await writer.append(Draft(gate.LINK, events, writer.fingerprints(accounts), state=state))

    async def _sync(self, state: ItemState | None) -> Released:
        """Read the update after the cursor and append it, or read the whole history where that is not possible."""
        writer = self.writer
        accounts: dict[str, Account] = {}
        if self._claimed.history_incomplete and writer.tip.cursor is not None:
            accounts = await self.client.read_accounts_if_due(required=True)
            if accounts and set(writer.tip.fingerprints) <= {writer.pseudonym(name) for name in accounts}:
                return await self._resync(state, accounts, because=INCOMPLETE)
        try:
            pages = await self._read_pages(writer.tip.cursor)
        except PlaidRefused as refusal:
            because = self._lost_cursor(refusal)
            if because is None:
                raise
            return await self._resync(state, accounts or await self.client.read_accounts(), because=because)
        if not pages:
            return await self._wait_for_history(state, attempts=0)
        update = merge_pages(pages, fresh=writer.tip.cursor is None)
        writer.request_ids += update.request_ids
        accounts = {**update.accounts, **accounts, **await self.client.read_accounts_if_due()}
        events = await off_loop(len(update.changes), lambda: encode_transactions(update.changes))
        return await self._append(gate.SYNC, update, events, accounts, state, fingerprinted=accounts)

    async def _read_pages(self, cursor: str | None) -> list[SyncPage]:
        context = self._context
        pages = await read_pages(context.bank, self._token, cursor, sleep=context.sleep, random=context.random)
        self.pages = len(pages)
        return pages

    def _lost_cursor(self, refusal: PlaidRefused) -> str | None:
        """Return the reason why the chain's cursor is lost; None where it is not.

        Source: PLAID.md 1.2, points 7 and 8.
        """
        if self.writer.tip.cursor is None:
            return None
        match plaid_errors.classify(refusal.error_type, refusal.error_code, with_cursor=True):
            case ErrorClass.CURSOR:
                return CURSOR
            case ErrorClass.MUTATION if self._claimed.attempts + 1 >= backoff.ATTEMPTS_MAX:
                return MUTATION
        return None

    async def _resync(self, state: ItemState | None, before: Collection[str], *, because: str) -> Released:
        """Read the whole history without a cursor and append it as the one record that replaces the known rows.

        The accounts are read before and after: one that comes or goes meanwhile is missing from one of the two, so
        that no removal is concluded for it. `before`: ids of the accounts read before, in this sync run.
        Raises: PlaidRefused, Retry: without accounts or history there is no record.
        """
        claimed, context, writer = self._claimed, self._context, self.writer
        _log.warning("full resync started", item_id=claimed.item_id, because=because)
        pages = await self._read_pages(None)
        accepts_incomplete = claimed.not_ready >= backoff.NOT_READY_ANSWERS_MAX
        if not pages or (pages[-1].status != HISTORY_COMPLETE and not accepts_incomplete):
            return await self._wait_for_history(state, attempts=outcomes.full_resync_attempts(claimed))
        update = merge_pages(pages, fresh=True)
        writer.request_ids += update.request_ids
        after = await self.client.read_accounts()
        named = {name: account for name, account in after.items() if name in before}
        covered = full_resync.history(
            update,
            named,
            known=writer.tip.fingerprints,
            pseudonyms={name: writer.pseudonym(name) for name in named},
            today=context.clock().date(),
            days_requested=context.days_requested,
            removals_share_max=context.removals_share_max,
        )
        events = await off_loop(len(update.changes), lambda: full_resync.encode(covered, update))
        # From the accounts that a head has fingerprints of, follow_heads learns which ones the history lacked.
        released = await self._append(
            gate.RESTATED, update, events, {**update.accounts, **named}, state, fingerprinted=named
        )
        metrics.FULL_RESYNCS.labels(because, "yes" if covered.complete else "no").inc()
        return outcomes.after_full_resync(claimed, released, because=because, jitter=context.random())

    async def _wait_for_history(self, state: ItemState | None, *, attempts: int) -> Released:
        """Append the state, and return an outcome that comes back for the history that Plaid has not read yet."""
        appended = await self._append_state(state)
        result = outcomes.after_not_ready(self._claimed, jitter=self._context.random(), attempts=attempts)
        return result if appended else msgspec.structs.replace(result, hints_until=self.writer.hints_until)

    async def _append(
        self,
        kind: str,
        update: Update,
        events: Events,
        accounts: Mapping[str, Account],
        state: ItemState | None,
        *,
        fingerprinted: Mapping[str, Account],
    ) -> Released:
        """Append an update with its accounts and the state where that changed."""
        writer, changed_state = self.writer, self._changed(state)
        events = events + encode_balances(accounts)
        if changed_state is not None:
            events += encode_item(ITEM_STATE_CHANGED, writer.subject, changed_state, update.status)
        fingerprints = writer.fingerprints(fingerprinted)
        draft = Draft(kind, events, fingerprints, update.next_cursor, changed_state, update.status)
        appended = await writer.append_if_news(draft)
        return Released(
            outcome="appended" if appended else "unchanged",
            done=True,
            synced=True,
            due_in_s=backoff.REFRESHED_S if self.client.refreshed else None,
            error=self.client.refresh_error,
            hints_until=None if appended else writer.hints_until,
        )

    async def _append_state(self, state: ItemState | None) -> bool:
        """Append a state where it changed, and return whether it did."""
        await self._check_share(state)
        writer, changed = self.writer, self._changed(state)
        if changed is None:
            return False
        events = encode_item(ITEM_STATE_CHANGED, writer.subject, changed, writer.tip.history_status)
        return await writer.append_if_news(Draft(gate.STATE, events, state=changed))

    def _changed(self, state: ItemState | None) -> ItemState | None:
        tip = self.writer.tip
        if state is None or (not state.from_webhook and (state.state, state.code) == (tip.state, tip.code)):
            return None
        return state

    async def _check_share(self, state: ItemState | None) -> None:
        """Check a state that ends the Item: a mistake of ours in a request would end all Items alike."""
        if state is not None and state.state in (GONE, REFUSED) and self.writer.tip.state != state.state:
            await check_gone_share(self._context.store)
