"""Linked Items: users who may have one account under several ids, and the rows of them that a batch has to load.

The result is a superset of the rows that the fold decides by, so a batch and its records one by one decide the same.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from projections.decode import transaction
from projections.gate.check import AcceptedRecord
from projections.matching import accounts
from projections.matching.accounts import AccountFeatures
from projections.matching.rules import DAYS_MAX
from projections.model import pg_copy
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import UnitOfWork


class Window(NamedTuple):
    """Dates of a user's transactions that may match new ones."""

    user: int
    since: datetime.date
    until: datetime.date


def users_to_load(records: Iterable[AcceptedRecord]) -> set[int]:
    """Return the users all of whose Items have to be loaded: an account has several ids, or one is new."""
    return {
        record.item.user
        for record in records
        if record.item is not None and (record.item.has_linked_accounts or has_new_accounts(record))
    }


def related_users(work: UnitOfWork, records: Sequence[AcceptedRecord], users: set[int]) -> set[int]:
    """Return those of these users with linked accounts, or accounts so alike that the fold may link them."""
    related = {item.user for item in work.items.values() if item.user in users and item.has_linked_accounts}
    alike: dict[int, set[AccountFeatures]] = defaultdict(set)
    for item in work.items.values():
        if item.user in users - related:
            alike[item.user].update(_loose(known) for _, known in accounts.known_features(item))
    for record in records:
        if record.item is not None and record.item.user in users - related:
            reported = (accounts.features(record.item, balance.account) for balance in record.changeset.balances)
            alike[record.item.user].update(map(_loose, reported))
    for user, candidates in alike.items():
        if any(
            first.key != second.key and accounts.is_same(first, second) for first, second in combinations(candidates, 2)
        ):
            related.add(user)
    return related


def date_windows(work: UnitOfWork, records: Iterable[AcceptedRecord], users: set[int]) -> list[Window]:
    """Return windows around all dates of these users' records, and of the rows that open reviews withhold."""
    dates: dict[int, set[bytes]] = defaultdict(set)
    for record in records:
        if record.item is not None and record.item.user in users:
            payloads = record.changeset.transactions
            dates[record.item.user].update(item.date for item in payloads if type(item) is TransactionPayload)
    withheld = {review.own_id for review in work.reviews.values()}
    for item in work.items.values() if withheld else ():
        for row in item.by_id.values():
            if row.own_id in withheld:
                dates[row.user].add(transaction.decode(row.schema, row.payload).date)
    windows = []
    for user, fields in dates.items():
        days = [pg_copy.read_date(field).toordinal() for field in fields]
        if days:
            windows.append(Window(user, _date(min(days) - DAYS_MAX), _date(max(days) + DAYS_MAX)))
    return windows


def has_new_accounts(record: AcceptedRecord) -> bool:
    """Return whether a record reports an account that its Item did not have."""
    item, balances = record.item, record.changeset.balances
    return item is not None and any(balance.account.account_id not in item.accounts for balance in balances)


def _loose(account: AccountFeatures) -> AccountFeatures:
    # An Item that the batch itself links has no payload yet that names its bank.
    return account._replace(institution_id="")


def _date(ordinal: int) -> datetime.date:
    return datetime.date.fromordinal(max(1, min(ordinal, datetime.date.max.toordinal())))
