"""Put Items and accounts into failure modes beyond a single request.

Each is a function for simulations; the control API declares the same by name (`fault_injection`).
"""

from decimal import Decimal
from typing import Literal

import msgspec

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank import relinked_ids
from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.transactions import Change
from sandbox.simulator.simulated_plaid import SimulatedPlaid, UpdateResult

CursorRefusal = Literal["INVALID_FIELD", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"]


def refuse_cursors(item: Item, *, code: CursorRefusal = "INVALID_FIELD") -> None:
    """Refuse every cursor given so far; a read from an empty cursor gives valid ones.

    Source: both occur in production: "cursor not associated with access_token", and the mutation error at a cursor of
    a finished loop, for ever (PLAID.md 1.2, 7 and 8).
    """
    item.cursor_epoch += 1
    item.refused_cursor_code = code


def unready_history(plaid: SimulatedPlaid, item: Item, *, initial_s: float, complete_s: float) -> None:
    """Make a history read from an empty cursor not ready, then complete for 30 days, then for all days.

    Units: seconds from now, multiplied by `time_scale`. Valid cursors work meanwhile.
    """

    def advance(before: str) -> None:
        if item.removed or item.reread != before:
            return
        item.reread = "INITIAL_UPDATE_COMPLETE" if before == "NOT_READY" else None
        item.arrangement += 1
        if item.synced_once:
            plaid.notifier.notify_updates(item)

    item.reread = "NOT_READY"
    item.arrangement += 1
    plaid.tasks.add(initial_s, lambda: advance("NOT_READY"))
    plaid.tasks.add(max(initial_s, complete_s), lambda: advance("INITIAL_UPDATE_COMPLETE"))


def add_unseen_changes(item: Item, *, changes: int) -> None:
    """Add changes at the bank that Plaid has not read; a poll or a refresh brings them."""
    item.withheld_changes += changes


def remove_rows(plaid: SimulatedPlaid, item: Item, count: int) -> UpdateResult:
    """Remove `count` rows that the seed chooses, or all. Raises: ValueError, where Plaid cannot reach the bank."""

    def removals(generator: TransactionGenerator) -> list[Change]:
        rows = [row for row in item.live.values() if item.is_listed(row)]
        return [Change("removed", row) for row in generator.rng.sample(rows, min(count, len(rows)))]

    return plaid.apply_update(item, removals)


def return_rows(plaid: SimulatedPlaid, item: Item, count: int) -> UpdateResult:
    """Return `count` removed rows that the seed chooses, or all, under their own ids.

    Raises: ValueError, where Plaid cannot reach the bank.
    """

    def returns(generator: TransactionGenerator) -> list[Change]:
        removed = {row.transaction_id: row for row in item.removed_rows if item.is_listed(row)}
        rows = [row for row in removed.values() if row.transaction_id not in item.live]
        chosen = generator.rng.sample(rows, min(count, len(rows)))
        return [Change("added", msgspec.structs.replace(row, version=row.version + 1)) for row in chosen]

    return plaid.apply_update(item, returns)


def hide_account(item: Item, account_id: str) -> None:
    """Hide an account and its rows from all answers, without a webhook.

    Raises: PlaidFailure (INVALID_ACCOUNT_ID), where the Item has no such account, as all functions below.
    """
    _account(item, account_id).hidden = True
    item.arrangement += 1


def show_account(plaid: SimulatedPlaid, item: Item, account_id: str) -> None:
    """Show a hidden account again; the log repeats its rows and its removals, as no client has seen them."""
    account = _account(item, account_id)
    if not account.hidden:
        return
    account.hidden = False
    item.arrangement += 1
    rows = {change.transaction.transaction_id: change.transaction for change in item.log}
    changes = []
    for transaction_id, row in rows.items():
        if row.account_id == account_id:
            live = item.live.get(transaction_id)
            changes.append(Change("modified", live) if live is not None else Change("removed", row))
    item.append(changes)
    item.last_successful_update = plaid.clock.now()
    if item.synced_once:
        plaid.notifier.notify_updates(item)


def revoke_account(plaid: SimulatedPlaid, item: Item, account_id: str) -> None:
    """Revoke one account, as its user does."""
    _account(item, account_id).revoked = True
    item.arrangement += 1
    plaid.notifier.notify(item, "ITEM", "USER_ACCOUNT_REVOKED", {"account_id": account_id})


def reissue_account(plaid: SimulatedPlaid, item: Item, account_id: str) -> UpdateResult:
    """Replace an account by one with another id and all its rows, in one update.

    Source: Plaid API, account_id: it changes where Plaid cannot reconcile the account with the bank's data.
    Raises: ValueError, where Plaid cannot reach the bank.
    """
    account = _account(item, account_id)
    result = plaid.apply_update(item, lambda generator: relinked_ids.reissued_changes(generator.rng, item, account))
    account.closed = True
    return result


def offer_account(plaid: SimulatedPlaid, item: Item) -> None:
    """Announce a new account; it is listed after update mode."""
    item.offered_accounts += 1
    plaid.notifier.notify(item, "ITEM", "NEW_ACCOUNTS_AVAILABLE", {"error": None})


def drift(item: Item, account_id: str, amount: Decimal) -> None:
    """Change a balance without a transaction or a webhook, as a bank's correction does."""
    _account(item, account_id).opening += amount


def _account(item: Item, account_id: str) -> Account:
    account = item.accounts.get(account_id)
    if account is None or not account.is_open:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    return account
