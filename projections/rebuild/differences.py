"""How two versions of the projections differ: by account, table and row, in ids alone. Core."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct, field

EXAMPLES_MAX = 3
"""Rows named of each kind, of one account and table: enough to look at."""


class Subject(NamedTuple):
    """What rows belong to: an account, all of an Item (no account), or all of a user (neither).

    Shape: rows of the ledger know their user and account, and no Item: Plaid's account ids are unique. Tables that
    keep no user's number have 0.
    """

    user: int
    item_id: str
    account_id: str


class Digest(NamedTuple):
    """All rows of a subject in one table: how many, and the sum of their hashes of 64 bits, as a decimal."""

    subject: Subject
    rows: int
    total: str


class RowDigest(NamedTuple):
    """One row of a subject: its primary key as text, and a hash of each column."""

    subject: Subject
    key: str
    hashes: Sequence[int | None]


class TableDifference(Struct):
    """How the rows of one subject differ in one table. `columns` are those that differ in rows that both have."""

    only_live: int = 0
    only_next: int = 0
    different: int = 0
    columns: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def count(self, live: RowDigest | None, following: RowDigest | None, columns: Sequence[str]) -> None:
        """Note a row that one of the two has, or both."""
        if live is None or following is None:
            what = "only_live" if following is None else "only_next"
            setattr(self, what, getattr(self, what) + 1)
        elif live.hashes != following.hashes:
            what = "different"
            self.different += 1
            found = {name for name, a, b in zip(columns, live.hashes, following.hashes, strict=True) if a != b}
            self.columns = sorted({*self.columns, *found})
        else:
            return
        row = live or following
        assert row is not None
        if sum(example.startswith(f"{what} ") for example in self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{what} {row.key}")


class Difference(Struct):
    """A subject whose rows differ, by table. An empty table is one of which only the digest was compared."""

    user: int
    item_id: str
    account_id: str
    tables: dict[str, TableDifference] = field(default_factory=dict)


class Comparison(Struct):
    """What a comparison of two versions found.

    Shape: `differences` are the first of `subjects_different`, where there are very many of them, and the first of
    each table have their rows looked at. `new_columns` and `gone_columns` are `table.column`, `notes` sentences for
    people.
    """

    accounts_compared: int = 0
    rows_compared: int = 0
    subjects_different: int = 0
    differences: list[Difference] = field(default_factory=list)
    new_columns: list[str] = field(default_factory=list)
    gone_columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def digest_equal(self) -> bool:
        """Whether all rows of both have the same values in the columns of both."""
        return not self.subjects_different


def with_items(differences: Iterable[Difference]) -> list[Difference]:
    """The same, where what the ledger says of an account is told with the rest of it."""
    by_subject: dict[Subject, Difference] = {}
    items: dict[tuple[int, str], set[str]] = {}
    found = list(differences)
    for one in found:
        if one.item_id and one.account_id:
            items.setdefault((one.user, one.account_id), set()).add(one.item_id)
    for one in found:
        known = items.get((one.user, one.account_id), set())
        item_id = one.item_id or (next(iter(known)) if len(known) == 1 else "")
        whole = by_subject.setdefault(
            Subject(one.user, item_id, one.account_id), Difference(one.user, item_id, one.account_id)
        )
        whole.tables |= one.tables
    return [by_subject[subject] for subject in sorted(by_subject)]


def notes(differences: Iterable[Difference]) -> list[str]:
    """What differences mean that are known to come about."""
    versions = [one.tables["transaction_versions"] for one in differences if "transaction_versions" in one.tables]
    if versions and all(one.only_next and not (one.only_live or one.different) for one in versions):
        count = sum(one.only_next for one in versions)
        return [
            f"the next version has {count} transaction_versions that the live one lacks: a release that did not keep "
            "former versions yet has folded their changesets; a rebuild fills them in (--expect-changes)"
        ]
    return []
