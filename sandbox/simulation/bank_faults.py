"""Cause the faults of banks and of Plaid that concern more than one request."""

import random
from collections.abc import Callable

from runtime.scheduler.types import Lane
from sandbox.simulation.engine.installation import Installation
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.failure_modes import CursorRefusal
from sandbox.simulator.webhooks.delivery import WebhookFault

REMOVED_MIN, REMOVED_SHARE = 11, 0.4
"""Removed rows of an Item: more than ten and more than a fifth, so that a person must decide."""
CODES: tuple[CursorRefusal, ...] = ("INVALID_FIELD", "INVALID_FIELD", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION")
LATE_S = (60.0, 600.0, 3600.0)
LATE_S_MAX = 23 * 3600.0

Later = Callable[[float, Callable[[], None]], None]
"""Schedule an action after so many seconds, unless the faults are over by then."""


class BankFaults:
    """Cause faults of one installation."""

    def __init__(self, installation: Installation, rng: random.Random, later: Later) -> None:
        self._installation = installation
        self._plaid = installation.simulated_plaid
        self._rng = rng
        self._later = later
        # A day of virtual time costs seconds of real time, so few runs have such late webhooks.
        self._late_s = (*LATE_S, LATE_S_MAX) if rng.random() < 0.05 else LATE_S
        self._hidden: list[tuple[Item, str]] = []

    def refuse_cursor(self, item: Item) -> None:
        """Refuse the cursor, and add a change."""
        self._count("cursor_refused", item)
        failure_modes.refuse_cursors(item, code=self._rng.choice(CODES))
        self._plaid.step(item.item_id)

    def remove_many(self, item: Item) -> None:
        """Remove many rows while the cursor is refused: more than a full resync removes without a decision."""
        count = max(REMOVED_MIN, int(len(item.live) * REMOVED_SHARE))
        if len(item.live) < count or not self._plaid.reachable(item):
            return
        self._count("many_removed", item)
        failure_modes.refuse_cursors(item)
        failure_modes.remove_rows(self._plaid, item, count)
        if self._rng.random() < 0.3:
            self._later(self._rng.uniform(5.0, 120.0), lambda: self._return_rows(item))

    def _return_rows(self, item: Item) -> None:
        if not item.removed and self._plaid.reachable(item):
            self._count("some_returned", item)
            failure_modes.return_rows(self._plaid, item, self._rng.randint(1, 8))

    def unready_history(self, item: Item) -> None:
        """Refuse the cursor, and make the history not ready for a while."""
        self._count("history_unready", item)
        failure_modes.refuse_cursors(item)
        initial_s = self._rng.uniform(5.0, 60.0)
        complete_s = initial_s + self._rng.uniform(0.0, 200.0)
        failure_modes.unready_history(self._plaid, item, initial_s=initial_s, complete_s=complete_s)
        self._plaid.step(item.item_id)

    def hide_account(self, item: Item) -> None:
        """Hide an account from all answers for a while, in some cases from a full resync too."""
        listed = [account for account in item.accounts.values() if account.is_listed]
        if len(listed) < 2:
            return
        account_id = self._rng.choice(listed).account_id
        self._count("account_hidden", item)
        failure_modes.hide_account(item, account_id)
        self._hidden.append((item, account_id))
        if self._rng.random() < 0.5:
            failure_modes.refuse_cursors(item)
        self._plaid.step(item.item_id)
        self._later(self._rng.uniform(10.0, 200.0), lambda: self._show_account(item, account_id))

    def _show_account(self, item: Item, account_id: str) -> None:
        if not item.removed:
            failure_modes.show_account(self._plaid, item, account_id)

    def request_refresh(self, item: Item) -> None:
        """Add changes that Plaid has not read, and request a refresh."""
        self._count("refresh_asked", item)
        failure_modes.add_unseen_changes(item, changes=self._rng.randint(1, 4))
        self._installation.request_sync(item.item_id, Lane.MANUAL, refresh=True)

    def delay_webhook(self, item: Item) -> None:
        """Delay the next webhook of an Item, by up to a day."""
        self._count("webhook_late", item)
        delay_s = self._rng.choice(self._late_s)
        self._plaid.deliveries.declare(WebhookFault(kind="late", item_id=item.item_id, delay_s=delay_s))
        self._plaid.step(item.item_id)

    def end(self) -> None:
        """End all of these faults."""
        self._plaid.deliveries.withdraw()
        for item, account_id in self._hidden:
            self._show_account(item, account_id)

    def _count(self, kind: str, item: Item) -> None:
        self._installation.faults.counts[kind] += 1
        self._installation.trace.note(f"{kind} {item.item_id}")
