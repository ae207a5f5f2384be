"""The same rows under other ids: what a re-link and a re-issued account look like."""

import random

import msgspec

from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.randomness import plaid_id
from sandbox.simulator.bank.transactions import Change, Transaction


def copied(rng: random.Random, old: Item, new: Item) -> list[Change]:
    """Give the rows of an Item as those of another one of the same login, whose accounts take over what they were."""
    accounts: dict[str, Account] = {}
    shown = [account for account in old.accounts.values() if account.shown]
    new.accounts.clear()
    for before in shown:
        after = _successor(rng, before)
        new.add_account(after)
        accounts[before.account_id] = after
    rows = [row for row in old.live.values() if row.account_id in accounts]
    rows.sort(key=lambda row: (row.date, row.transaction_id))
    return [Change("added", _renamed(rng, row, accounts[row.account_id])) for row in rows]


def reissued(rng: random.Random, item: Item, account: Account) -> list[Change]:
    """Give an update that takes all rows of an account away and brings them back under a new account's id."""
    successor = _successor(rng, account)
    # The rows that come back explain the balance that the account already had.
    owed = account.plan.type in ("credit", "loan")
    successor.opening += -account.posted if owed else account.posted
    item.add_account(successor)
    rows = [row for row in item.live.values() if row.account_id == account.account_id]
    removed = [Change("removed", row) for row in rows]
    return removed + [Change("added", _renamed(rng, row, successor)) for row in rows]


def _successor(rng: random.Random, account: Account) -> Account:
    return Account(
        account_id=plaid_id(rng),
        persistent_id=account.persistent_id,
        plan=account.plan,
        mask=account.mask,
        opening=account.current,
    )


def _renamed(rng: random.Random, row: Transaction, account: Account) -> Transaction:
    return msgspec.structs.replace(
        row,
        transaction_id=plaid_id(rng),
        account_id=account.account_id,
        pending_transaction_id=row.pending_transaction_id and plaid_id(rng),
        version=0,
    )
