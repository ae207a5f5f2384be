"""What goes wrong with an Item or a bank beyond a single request, and what a bank does to accounts.

Each is a function of a world, for simulations; the control API declares the same by name (`declarations`).
"""

from decimal import Decimal
from typing import Literal

import msgspec

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank import relinked_ids
from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.transactions import Change
from sandbox.simulator.simulated_plaid import Outcome, SimulatedPlaid

CursorRefusal = Literal["INVALID_FIELD", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"]


def refuse_cursors(item: Item, *, code: CursorRefusal = "INVALID_FIELD") -> None:
    """Refuse every cursor given so far, until the history is read from no cursor; that gives good ones.

    Source: both are met in production: "cursor not associated with access_token", and the mutation error at a cursor
    of a finished loop, for ever (PLAID.md 1.2, 7 and 8).
    """
    item.cursor_epoch += 1
    item.refused_cursor_code = code


def unready_history(world: SimulatedPlaid, item: Item, *, initial_s: float, complete_s: float) -> None:
    """Let a history that is read again from no cursor be not ready, then its last 30 days, then all of it.

    Units: seconds from now, scaled like all Plaid's waits. Good cursors go on meanwhile.
    """

    def reach(before: str) -> None:
        if item.removed or item.reread != before:
            return
        item.reread = "INITIAL_UPDATE_COMPLETE" if before == "NOT_READY" else None
        item.arrangement += 1
        if item.synced_once:
            world.notifier.notify_updates(item)

    item.reread = "NOT_READY"
    item.arrangement += 1
    world.tasks.add(initial_s, lambda: reach("NOT_READY"))
    world.tasks.add(max(initial_s, complete_s), lambda: reach("INITIAL_UPDATE_COMPLETE"))


def institution_down_for(
    world: SimulatedPlaid, institution_id: str, seconds: float, *, code: str = "INSTITUTION_DOWN"
) -> None:
    """Let a bank be down for a time. Raises: as `SimulatedPlaid.institution_down`."""
    world.institution_down(institution_id, code=code)
    world.tasks.add(seconds, lambda: world.institution_up(institution_id))


def add_unseen_changes(item: Item, *, changes: int) -> None:
    """Let something happen at the bank that Plaid has not seen; a poll or a refresh brings it."""
    item.withheld_changes += changes


def remove_some(world: SimulatedPlaid, item: Item, count: int) -> Outcome:
    """Let the bank take away so many rows that the seed chooses, or all where it has fewer.

    Raises: ValueError, where Plaid cannot reach the bank to see it.
    """

    def removals(drawing: TransactionGenerator) -> list[Change]:
        rows = [row for row in item.live.values() if item.accounts[row.account_id].told]
        return [Change("removed", row) for row in drawing.rng.sample(rows, min(count, len(rows)))]

    return world.apply_update(item, removals)


def return_some(world: SimulatedPlaid, item: Item, count: int) -> Outcome:
    """Let rows come back that were removed, under their own ids: so many that the seed chooses, or all there are.

    Raises: ValueError, where Plaid cannot reach the bank to see it.
    """

    def returns(drawing: TransactionGenerator) -> list[Change]:
        gone = {row.transaction_id: row for row in item.gone if item.accounts[row.account_id].told}
        rows = [row for row in gone.values() if row.transaction_id not in item.live]
        chosen = drawing.rng.sample(rows, min(count, len(rows)))
        return [Change("added", msgspec.structs.replace(row, version=row.version + 1)) for row in chosen]

    return world.apply_update(item, returns)


def hide_account(item: Item, account_id: str) -> None:
    """Let an account be missing from all answers, its rows too, though it is there: nothing tells of it.

    Raises: PlaidFailure (INVALID_ACCOUNT_ID), where the Item has no such account.
    """
    _account(item, account_id).hidden = True
    item.arrangement += 1


def show_account(world: SimulatedPlaid, item: Item, account_id: str) -> None:
    """Bring a hidden account back. Its rows are told again, and what of it is gone, as nobody was told meanwhile.

    Raises: PlaidFailure (INVALID_ACCOUNT_ID), where the Item has no such account.
    """
    account = _account(item, account_id)
    if not account.hidden:
        return
    account.hidden = False
    item.arrangement += 1
    rows = {change.transaction.transaction_id: change.transaction for change in item.log}
    of_account = [row for row in rows.values() if row.account_id == account_id]
    item.retell(
        [
            Change("modified", item.live[row.transaction_id])
            if row.transaction_id in item.live
            else Change("removed", row)
            for row in of_account
        ]
    )
    item.last_successful_update = world.clock.now()
    if item.synced_once:
        world.notifier.notify_updates(item)


def revoke_account(world: SimulatedPlaid, item: Item, account_id: str) -> None:
    """Let a user withdraw one account of an Item.

    Raises: PlaidFailure (INVALID_ACCOUNT_ID), where the Item has no such account.
    """
    _account(item, account_id).revoked = True
    item.arrangement += 1
    world.notifier.notify(item, "ITEM", "USER_ACCOUNT_REVOKED", {"account_id": account_id})


def reissue_account(world: SimulatedPlaid, item: Item, account_id: str) -> Outcome:
    """Let an account come back under another id, all its rows with it, in one update.

    Source: Plaid API, account_id: it changes where Plaid cannot reconcile the account with the bank's data.
    Raises: PlaidFailure (INVALID_ACCOUNT_ID), where the Item has no such account; ValueError, where Plaid cannot
    reach the bank to see it.
    """
    account = _account(item, account_id)
    outcome = world.apply_update(item, lambda drawing: relinked_ids.reissued(drawing.rng, item, account))
    account.closed = True
    return outcome


def offer_account(world: SimulatedPlaid, item: Item) -> None:
    """Tell of a new account; it is shown after the user was in update mode."""
    item.offered_accounts += 1
    world.notifier.notify(item, "ITEM", "NEW_ACCOUNTS_AVAILABLE", {"error": None})


def drift(item: Item, account_id: str, amount: Decimal) -> None:
    """Let a bank correct a balance without a transaction; nothing tells of it but the balance.

    Raises: PlaidFailure (INVALID_ACCOUNT_ID), where the Item has no such account.
    """
    _account(item, account_id).opening += amount


def _account(item: Item, account_id: str) -> Account:
    account = item.accounts.get(account_id)
    if account is None or not account.shown:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    return account
