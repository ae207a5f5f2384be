"""Create the same rows under new ids, as a re-link and a re-issued account do."""

import random

import msgspec

from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.randomness import plaid_id
from sandbox.simulator.bank.transactions import Change, Transaction


def relinked_changes(rng: random.Random, old: Item, new: Item) -> list[Change]:
    """Replace the accounts of `new` by successors of those of `old`, and return the rows of `old` under new ids."""
    successors = {a.account_id: _successor(rng, a) for a in old.accounts.values() if a.is_open}
    new.accounts = {account.account_id: account for account in successors.values()}
    rows = [row for row in old.live.values() if row.account_id in successors]
    rows.sort(key=lambda row: (row.date, row.transaction_id))
    return [Change("added", _with_new_ids(rng, row, successors[row.account_id])) for row in rows]


def reissued_changes(rng: random.Random, item: Item, account: Account) -> list[Change]:
    """Return an update that removes all rows of an account and adds them under a new account's id."""
    successor = _successor(rng, account)
    # The returning rows are already part of the account's balance.
    successor.absorb(account.posted_sum)
    item.accounts[successor.account_id] = successor
    rows = [row for row in item.live.values() if row.account_id == account.account_id]
    removed = [Change("removed", row) for row in rows]
    return removed + [Change("added", _with_new_ids(rng, row, successor)) for row in rows]


def _successor(rng: random.Random, account: Account) -> Account:
    return Account(plaid_id(rng), account.persistent_id, account.plan, account.mask, opening=account.current)


def _with_new_ids(rng: random.Random, row: Transaction, account: Account) -> Transaction:
    return msgspec.structs.replace(
        row,
        transaction_id=plaid_id(rng),
        account_id=account.account_id,
        pending_transaction_id=row.pending_transaction_id and plaid_id(rng),
        version=0,
    )
