"""`tartan verify`: every invariant of the tables, in one snapshot, each with how much was looked at and what is wrong.

Only a swap of versions waits for it. What it costs is one read of all rows: about 50 µs a transaction.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import asyncpg
import zstandard
from msgspec import Struct, field

from projections.decode import transaction
from projections.events import public_events
from projections.ledger.postings import posted
from projections.model import book
from projections.model.book import Book
from projections.model.unit_of_work import Row
from projections.store import rows
from projections.verify.invariants import EXAMPLES_MAX, INVARIANTS
from runtime.postgres.pool import snapshot
from schemas.errors import Quarantine
from schemas.ids import opening_id
from schemas.times import to_micros

ROWS_AT_ONCE = 1_000
"""Rows of one fetch: about a megabyte."""
EVENTS_AT_ONCE = 20
"""Changesets of one fetch: each may have megabytes of events."""
LEDGER_ACCOUNTS_MAX = 10_000
"""Ledger accounts remembered, 200 bytes each."""

WORDS = "columns_are_what_the_words_say"
POSTINGS = "transfers_are_what_words_and_user_fields_say"
OPENINGS = "accounts_are_opened_once_before_every_date"
EVENTS = "net_events_equal_their_digest"


class Finding(Struct):
    """What came of one invariant; `examples` are the first violations, ids only."""

    checked: int = 0
    violations: int = 0
    examples: list[str] = field(default_factory=list)

    def count(self, what: str, *, holds: bool) -> None:
        """Note one look."""
        self.checked += 1
        if not holds:
            self.violations += 1
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(what)


async def verify(connection: asyncpg.Connection) -> dict[str, Finding]:
    """Check every invariant of the tables as they are at one moment."""
    found: dict[str, Finding] = {}
    async with snapshot(connection):
        for invariant in INVARIANTS:
            row = await connection.fetchrow(invariant.query)
            assert row is not None
            found[invariant.name] = Finding(row["checked"], row["violations"], list(row["examples"]))
        for check in (_rows, _openings, _events):
            found.update(await check(connection))
    return found


def totals(found: Mapping[str, Finding]) -> dict[str, Any]:
    """All findings as one document: `checked` and `violations` in all, and each invariant by name."""
    return {
        "checked": sum(one.checked for one in found.values()),
        "violations": sum(one.violations for one in found.values()),
        "invariants": {
            name: {"checked": one.checked, "violations": one.violations, "examples": one.examples}
            for name, one in found.items()
        },
    }


async def _rows(connection: asyncpg.Connection) -> dict[str, Finding]:
    """Each row's columns against the bank's payload, and its last transfers against payload and user fields."""
    columns, postings, book = Finding(), Finding(), Book()
    async for record in connection.cursor(_ROWS, prefetch=ROWS_AT_ONCE):
        what = f"own id {record['own_id'].hex()}"
        row = _row(record)
        if len(book.accounts) > LEDGER_ACCOUNTS_MAX:
            book = Book()
        try:
            said, due = rows.transaction_values(row)[-len(transaction.COLUMNS) :], posted(book, row)
        except (Quarantine, IndexError, ValueError, TypeError):
            columns.count(what, holds=False)
            continue
        columns.count(what, holds=said == tuple(record[name] for name in transaction.COLUMNS))
        stored = list(zip(record["debits"] or (), record["credits"] or (), record["amounts"] or (), strict=True))
        postings.count(what, holds=stored == [(one.debit.id, one.credit.id, one.amount) for one in due])
    return {WORDS: columns, POSTINGS: postings}


def _row(record: asyncpg.Record) -> Row:
    return Row(
        record["own_id"],
        record["item_id"],
        record["user_number"],
        record["transaction_id"],
        record["own_id_inherited"],
        record["payload"],
        record["payload_schema"],
        None,
        book.NOTHING,
        0,
        0,
        0,
        removed_at=to_micros(record["removed_at"]),
        user_fields=record["user_fields"],
        review=record["review"],
    )


async def _openings(connection: asyncpg.Connection) -> dict[str, Finding]:
    found = Finding()
    unnamed = {row["own_id"]: row for row in await connection.fetch(_UNNAMED)}
    async for account in connection.cursor(_ACCOUNTS, prefetch=ROWS_AT_ONCE):
        what = f"account {account['account_id']} of item {account['item_id']}"
        transfers = unnamed.pop(opening_id(account["user_number"], account["item_id"], account["account_id"]), None)
        if account["opened"] is None:
            found.count(what, holds=transfers is None and not account["opening_transfers"])
        else:
            found.count(
                what,
                holds=transfers is not None
                and transfers["is_opening"]
                and ((transfers["found"], transfers["changeset"]) == (account["opening_transfers"], account["opened"])),
            )
    for own in unnamed:
        found.count(f"transfers of own id {own.hex()}", holds=False)
    return {OPENINGS: found}


async def _events(connection: asyncpg.Connection) -> dict[str, Finding]:
    found = Finding()
    async for row in connection.cursor(_EVENTS, prefetch=EVENTS_AT_ONCE):
        try:
            block = rows.decompress(row["events"])
            holds = hashlib.sha256(block).digest() == row["digest"]
            holds = holds and len(public_events.decode_block(block)) == row["net_events"]
        except (zstandard.ZstdError, Quarantine, IndexError, ValueError):
            holds = False
        found.count(f"changeset {row['partition']}.{row['source_offset']}", holds=holds)
    return {EVENTS: found}


_ROWS = f"""
SELECT t.own_id, t.item_id, t.user_number, t.transaction_id, t.own_id_inherited, t.payload, t.payload_schema, t.removed_at,
       t.user_fields, t.review,
       {", ".join(f't."{name}"' for name in transaction.COLUMNS)}, l.debits, l.credits, l.amounts
  FROM transactions t LEFT JOIN LATERAL (
       SELECT array_agg(debit ORDER BY number) AS debits, array_agg(credit ORDER BY number) AS credits,
              array_agg(amount ORDER BY number) AS amounts
         FROM ledger_transfers l WHERE l.own_id = t.own_id AND l.number > t.transfers - t.active_transfers) l ON true"""

# Transfers of no transaction: those of openings.
_UNNAMED = f"""
SELECT l.own_id, count(*) AS found, min(l.changeset) AS changeset,
       bool_and(l.effective = '-infinity' AND l.layer = '{book.POSTED}' AND l.reverses IS NULL) AS is_opening
  FROM ledger_transfers l
 WHERE NOT EXISTS (SELECT FROM transactions t WHERE t.own_id = l.own_id) GROUP BY l.own_id"""

_ACCOUNTS = "SELECT item_id, account_id, user_number, opened, opening_transfers FROM accounts"

_EVENTS = """
SELECT partition, source_offset, digest, net_events, events FROM changesets WHERE events IS NOT NULL"""
