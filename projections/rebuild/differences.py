"""Differences between two versions of the projections, by account, table and row, in ids alone. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct, field

EXAMPLES_MAX = 3
"""Rows listed of each kind, of one account and table."""


class Subject(NamedTuple):
    """Owner of rows: an account, all of an Item (no account), or all of a user (neither).

    Shape: rows of the ledger have user and account, and no Item: Plaid's account ids are unique. Tables without a
    user's number have 0.
    """

    user: int
    item_id: str
    account_id: str


class Digest(NamedTuple):
    """All rows of a subject in one table: their number, and the sum of their hashes of 64 bits, as a decimal."""

    subject: Subject
    rows: int
    total: str


class RowDigest(NamedTuple):
    """One row of a subject: its primary key as text, and a hash of each column."""

    subject: Subject
    key: str
    hashes: Sequence[int | None]


class TableDifference(Struct):
    """Differences of one subject in one table. `columns` are those that differ in rows of both versions."""

    only_live: int = 0
    only_next: int = 0
    different: int = 0
    columns: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def count(self, live: RowDigest | None, following: RowDigest | None, columns: Sequence[str]) -> None:
        """Count a row of one version, or of both."""
        if live is None or following is None:
            kind = "only_live" if following is None else "only_next"
            setattr(self, kind, getattr(self, kind) + 1)
        elif live.hashes != following.hashes:
            kind = "different"
            self.different += 1
            differing = {name for name, a, b in zip(columns, live.hashes, following.hashes, strict=True) if a != b}
            self.columns = sorted({*self.columns, *differing})
        else:
            return
        row = live or following
        assert row is not None
        if sum(example.startswith(f"{kind} ") for example in self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{kind} {row.key}")


class Difference(Struct):
    """Differences of a subject, by table. Of an empty table only the digest was compared."""

    user: int
    item_id: str
    account_id: str
    tables: dict[str, TableDifference] = field(default_factory=dict)


class Comparison(Struct):
    """Result of a comparison of two versions.

    Shape: `differences` are the first of `subjects_different`, where there are very many of them, and rows are compared
    for the first of each table. `new_columns` and `gone_columns` are `table.column`, `notes` sentences for people.
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
        """Return True where all rows have the same values in the columns of both versions."""
        return not self.subjects_different


def with_items(differences: Iterable[Difference]) -> list[Difference]:
    """Merge the ledger's differences of an account, which have no Item, into those of the account's Item."""
    differences = list(differences)
    items: dict[tuple[int, str], set[str]] = {}
    for difference in differences:
        if difference.item_id and difference.account_id:
            items.setdefault((difference.user, difference.account_id), set()).add(difference.item_id)
    merged: dict[Subject, Difference] = {}
    for difference in differences:
        known = items.get((difference.user, difference.account_id), set())
        item_id = difference.item_id or (next(iter(known)) if len(known) == 1 else "")
        subject = Subject(difference.user, item_id, difference.account_id)
        merged.setdefault(subject, Difference(*subject)).tables |= difference.tables
    return [merged[subject] for subject in sorted(merged)]


def notes(differences: Iterable[Difference]) -> list[str]:
    """Return explanations of differences with a known cause."""
    name = "transaction_versions"
    tables = [difference.tables[name] for difference in differences if name in difference.tables]
    if not tables or not all(table.only_next and not (table.only_live or table.different) for table in tables):
        return []
    count = sum(table.only_next for table in tables)
    return [
        f"the next version has {count} transaction_versions that the live one lacks: a release that did not keep "
        "former versions yet has folded their changesets; a rebuild fills them in (--expect-changes)"
    ]
