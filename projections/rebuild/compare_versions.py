"""Comparison of two versions of the projections on the server, each in a snapshot of its own. Shell.

A snapshot of the live version is taken first, then the next version is loaded up to exactly its positions: so all
partitions are compared at once, and the live version's writers go on meanwhile.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

import asyncpg
from sqlalchemy import LargeBinary

from projections.rebuild.differences import (
    Comparison,
    Difference,
    Digest,
    RowDigest,
    Subject,
    TableDifference,
    notes,
    with_items,
)
from projections.rebuild.versions import positions
from projections.store import tables
from projections.verify.digests import NOT_REPLAYED
from schemas.errors import Halt

SUBJECTS_MAX = 10_000
"""Differing accounts in the result, about 1 kB each; all of them are counted."""
DETAILED_MAX = 200
"""Subjects of one table whose rows are compared, by one more read of the table."""
ROWS_AT_ONCE = 2_000
SEED = 0
"""Of the hashes, on both sides."""

OF_LEDGER = "ledger_accounts"

Row = TypeVar("Row")


class _Table(NamedTuple):
    """SQL expressions for the subject of a table's rows `r`, and the joins that they need."""

    user: str = "r.user_number"
    item: str = "r.item_id"
    account: str = "''"
    joined: str = ""


_BANK = "CASE WHEN {0}.kind = 'bank' THEN {0}.reference END"
SUBJECTS: Mapping[str, _Table] = {
    "items": _Table(),
    "accounts": _Table(account="r.account_id"),
    "transactions": _Table(account="r.account_id"),
    "transaction_versions": _Table(),
    "account_versions": _Table(account="r.account_id"),
    "transaction_matches": _Table(),
    "reviews": _Table(),
    "changesets": _Table(item="coalesce(r.item_id, '')"),
    "withheld": _Table(user="0"),
    "chunks": _Table(user="0"),
    OF_LEDGER: _Table(item="''", account=f"coalesce({_BANK.format('r')}, '')"),
    "ledger_balances": _Table(
        "coalesce(a.user_number, 0)",
        "''",
        f"coalesce({_BANK.format('a')}, '')",
        f"LEFT JOIN {{schema}}.{OF_LEDGER} a ON a.id = r.account",
    ),
    # One leg is a bank's account, the other a category or equity.
    "ledger_transfers": _Table(
        "r.user_number",
        "''",
        f"coalesce({_BANK.format('d')}, {_BANK.format('c')}, '')",
        f"LEFT JOIN {{schema}}.{OF_LEDGER} d ON d.id = r.debit LEFT JOIN {{schema}}.{OF_LEDGER} c ON c.id = r.credit",
    ),
}


class Side(NamedTuple):
    """One of the two versions: a connection with a snapshot, and the schema that it reads."""

    connection: asyncpg.Connection
    schema: str


async def compare(live: Side, following: Side) -> Comparison:
    """Compare all rows that any replay of the same log gives again, in the columns of both versions.

    Memory: some thousand digests, and the differences up to SUBJECTS_MAX.
    Raises: Halt, where the two are not at the same positions.
    """
    if await _positions(live) != await _positions(following):
        raise Halt("the versions are not at the same positions, so they cannot be compared")
    result = Comparison()
    columns = await _columns(live), await _columns(following)
    result.new_columns, result.gone_columns = _missing(columns[1], columns[0]), _missing(columns[0], columns[1])
    differing: dict[Subject, Difference] = {}
    for table in SUBJECTS:
        both = [name for name in columns[0].get(table, ()) if name in columns[1].get(table, ())]
        if both:
            await _compare_table(live, following, _Compared(table, both), result, differing)
    result.differences = with_items(differing.values())
    result.notes = notes(result.differences)
    return result


class _Compared(NamedTuple):
    """A table, and its columns that are compared."""

    name: str
    columns: Sequence[str]


async def _compare_table(
    live: Side, following: Side, table: _Compared, result: Comparison, differing: dict[Subject, Difference]
) -> None:
    subjects: list[Subject] = []
    by_subject = _paired(_digests(live, table), _digests(following, table), lambda digest: digest.subject)
    async for live_digest, next_digest in by_subject:
        digest = live_digest or next_digest
        assert digest is not None
        result.rows_compared += digest.rows
        result.accounts_compared += digest.rows if table.name == "accounts" else 0
        if live_digest == next_digest:
            continue
        if digest.subject not in differing:
            result.subjects_different += 1
            if len(differing) >= SUBJECTS_MAX:
                continue
            differing[digest.subject] = Difference(*digest.subject)
        differing[digest.subject].tables[table.name] = TableDifference()
        if len(subjects) < DETAILED_MAX:
            subjects.append(digest.subject)
    if subjects:
        sides = _rows(live, table, subjects), _rows(following, table, subjects)
        async for row, counterpart in _paired(*sides, lambda row: (row.subject, row.key)):
            either = row or counterpart
            assert either is not None
            differing[either.subject].tables[table.name].count(row, counterpart, table.columns)


async def _paired(
    left: AsyncIterator[Row], right: AsyncIterator[Row], key: Callable[[Row], tuple[object, ...]]
) -> AsyncIterator[tuple[Row | None, Row | None]]:
    """Iterate over two streams sorted by `key` in parallel; None where one has no such row."""
    first, second = await anext(left, None), await anext(right, None)
    while first is not None or second is not None:
        if second is None or (first is not None and key(first) < key(second)):
            yield first, None
            first = await anext(left, None)
        elif first is None or key(second) < key(first):
            yield None, second
            second = await anext(right, None)
        else:
            yield first, second
            first, second = await anext(left, None), await anext(right, None)


async def _digests(side: Side, table: _Compared) -> AsyncIterator[Digest]:
    values = ", ".join(f'r."{name}"' for name in table.columns)
    # A record's hash is a sum of its fields' hashes times powers of 31: without the second hash, two rows that have
    # exchanged values would give the same total.
    of_row = f"hashtextextended(hash_record_extended(ROW({values}), {SEED})::text, {SEED})"
    query = f"""
SELECT {_subject(table.name)}, count(*) AS rows, sum({of_row})::text AS total
  FROM {_source(side, table.name)} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""
    async for row in side.connection.cursor(query, prefetch=ROWS_AT_ONCE):
        yield Digest(Subject(*row[:3]), row["rows"], row["total"])


async def _rows(side: Side, table: _Compared, subjects: Collection[Subject]) -> AsyncIterator[RowDigest]:
    hashes = ", ".join(f'hash_record_extended(ROW(r."{name}"), {SEED})' for name in table.columns)
    users, items, accounts = (list(values) for values in zip(*subjects, strict=True))
    query = f"""
SELECT * FROM (SELECT {_subject(table.name)}, ({_key(table.name)}) COLLATE "C" AS key, ARRAY[{hashes}] AS hashes
                 FROM {_source(side, table.name)}) AS digests
 WHERE (subject_user, subject_item, subject_account) IN (SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]))
 ORDER BY 1, 2, 3, 4"""
    async for row in side.connection.cursor(query, users, items, accounts, prefetch=ROWS_AT_ONCE):
        yield RowDigest(Subject(*row[:3]), row["key"], row["hashes"])


def _subject(table: str) -> str:
    """Return SQL for the subject's three columns, in Python's sort order."""
    expressions = SUBJECTS[table]
    return (
        f'({expressions.user})::bigint AS subject_user, ({expressions.item}) COLLATE "C" AS subject_item, '
        f'({expressions.account}) COLLATE "C" AS subject_account'
    )


def _source(side: Side, table: str) -> str:
    return f"{side.schema}.{table} r {SUBJECTS[table].joined.format(schema=side.schema)}"


def _key(table: str) -> str:
    """Return SQL for the primary key as one text, bytes in hexadecimal."""
    return " || ' ' || ".join(
        f"encode(r.\"{column.name}\", 'hex')" if isinstance(column.type, LargeBinary) else f'r."{column.name}"::text'
        for column in tables.metadata.tables[f"{tables.SCHEMA}.{table}"].primary_key.columns
    )


async def _columns(side: Side) -> dict[str, list[str]]:
    """Return the columns of each table that any replay gives again, as the database has them."""
    columns: dict[str, list[str]] = {}
    for row in await side.connection.fetch(_COLUMNS, side.schema):
        if (row["table_name"], row["column_name"]) not in NOT_REPLAYED and row["table_name"] in SUBJECTS:
            columns.setdefault(row["table_name"], []).append(row["column_name"])
    return columns


def _missing(those: Mapping[str, Sequence[str]], of: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{table}.{name}" for table, names in those.items() for name in names if name not in of.get(table, ())]


async def _positions(side: Side) -> dict[int, int]:
    return {number: position.next for number, position in (await positions(side.connection, side.schema)).items()}


_COLUMNS = """
SELECT table_name::text, column_name::text FROM information_schema.columns
 WHERE table_schema = $1 ORDER BY table_name, ordinal_position"""
