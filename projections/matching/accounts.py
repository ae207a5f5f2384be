"""Account matching: find accounts that are one account at the bank under several of Plaid's ids.

Source: Plaid, Duplicate Items: match by institution, name and mask, or by persistent_account_id where a bank has one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from projections.decode.changeset import BalanceReport
from projections.model.unit_of_work import AccountKey, AccountRow, ItemRow, UnitOfWork
from schemas.encoding import codec
from schemas.log.records import Account


class AccountFeatures(NamedTuple):
    """Features of an account, whatever its id: `name` is normalised, None is a value that the bank did not report."""

    key: AccountKey
    institution_id: str | None
    persistent_id: str | None
    mask: str | None
    name: str | None
    type: str
    subtype: str | None
    currency: str


def normalised(text: str | None) -> str:
    """Remove what banks change at will: letter case, and white space around and between words."""
    return " ".join((text or "").split()).casefold()


def features(item: ItemRow, account: Account) -> AccountFeatures:
    """Return the features of a reported account of an Item."""
    institution_id = None if item.payload is None else codec.decoder(item.schema)(item.payload, 0)[0].institution_id
    return AccountFeatures(
        (item.item_id, account.account_id),
        institution_id,
        account.persistent_account_id,
        account.mask,
        normalised(account.name) or None,
        account.type,
        account.subtype,
        account.currency,
    )


def known_features(item: ItemRow) -> list[tuple[AccountRow, AccountFeatures]]:
    """Return the known accounts of an Item with their features, by the source that was last reported."""
    known = []
    for row in item.accounts.values():
        payload, schema = row.reported(row.source)
        if payload is not None:
            known.append((row, features(item, codec.decoder(schema)(payload, 0)[0])))
    return known


def is_same(first: AccountFeatures, second: AccountFeatures) -> bool:
    """Compare two accounts by the bank's persistent id, else by all other features.

    Two persistent ids that differ are two accounts, however alike the rest is.
    """
    if first.persistent_id is not None and second.persistent_id is not None:
        return first.persistent_id == second.persistent_id
    if None in (first.institution_id, first.mask, first.name):
        return False
    return first[1:2] + first[3:] == second[1:2] + second[3:]


def pairs(
    new: Iterable[AccountFeatures], peers: Sequence[AccountFeatures], known: Sequence[AccountFeatures]
) -> list[tuple[AccountFeatures, AccountFeatures]]:
    """Pair new accounts with known ones, where there is exactly one match on each side.

    `peers` are all accounts, the new ones too, that could match the known one as well.
    """
    matched = []
    for account in new:
        alike = [other for other in known if is_same(account, other)]
        if len(alike) == 1 and sum(is_same(peer, alike[0]) for peer in peers) == 1:
            matched.append((account, alike[0]))
    return matched


def link_new_accounts(work: UnitOfWork, item: ItemRow, balances: Sequence[BalanceReport]) -> None:
    """Link the accounts that a record reports for the first time with the accounts that they continue, by age.

    An account of an Item that was linked earlier is older, within an Item the one known earlier.
    """
    reported = {balance.account.account_id: balance.account for balance in balances}
    new = [features(item, account) for account_id, account in reported.items() if account_id not in item.accounts]
    if not new:
        return
    candidates: list[AccountFeatures] = []
    peers = list(new)
    for other in [other for other in work.items.values() if other.user == item.user]:
        for row, known in known_features(other):
            if row.continued_by is None:
                chain = [known.key, *walk(work, known.key, "continues")]
                is_reported = any(item_id == item.item_id and account_id in reported for item_id, account_id in chain)
                (peers if is_reported else candidates).append(known)
    for account, match in pairs(new, peers, candidates):
        account_id = account.key[1]
        row = item.accounts[account_id] = AccountRow(account_id, item.item_id, item.user)
        _insert(work, item, row, [match.key, *walk(work, match.key, "continues")])


def walk(work: UnitOfWork, key: AccountKey, link: Literal["continues", "continued_by"]) -> Iterator[AccountKey]:
    """Yield all older accounts of one (`continues`) or all younger ones (`continued_by`), the nearest first."""
    visited = {key}
    while True:
        item = work.items.get(key[0])
        account = None if item is None else item.accounts.get(key[1])
        following: AccountKey | None = None if account is None else getattr(account, link)
        if following is None or following in visited:
            return
        visited.add(following)
        yield following
        key = following


def _insert(work: UnitOfWork, item: ItemRow, row: AccountRow, chain: Sequence[AccountKey]) -> None:
    """Insert an account into a chain, youngest first, and mark the chain's Items as linked."""
    younger = [key for key in chain if key[0] != item.item_id and _is_older(item, work.items[key[0]])]
    older = [key for key in chain if key not in younger]
    key = (row.item_id, row.account_id)
    if younger:
        row.continued_by = younger[-1]
        _changed_account(work, younger[-1]).continues = key
    if older:
        row.continues = older[0]
        _changed_account(work, older[0]).continued_by = key
    linked = {item_id for item_id, _ in chain} - {item.item_id}
    for item_id in linked | {item.item_id} if linked else ():
        work.items[item_id].has_linked_items = True
        work.changed_items[item_id] = work.items[item_id]


def _changed_account(work: UnitOfWork, key: AccountKey) -> AccountRow:
    account = work.changed_accounts[key] = work.items[key[0]].accounts[key[1]]
    return account


def _is_older(item: ItemRow, other: ItemRow) -> bool:
    """Compare the times at which two Items were linked, then their ids."""
    if item.linked_at is None or other.linked_at is None:
        return item.linked_at is not None
    return (item.linked_at, item.item_id) < (other.linked_at, other.item_id)
