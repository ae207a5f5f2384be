"""Invariants of the tables: check each in one snapshot, with its count and its violations. Shell.

Only a swap of versions waits for it. It reads all rows once: about 50 µs a transaction.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import asyncpg
import msgspec
import zstandard
from msgspec import Struct, field

from projections.decode import transaction
from projections.events import public_events
from projections.ledger.postings import posted
from projections.model.book import NOTHING, POSTED, Book
from projections.model.unit_of_work import MERGED_PREFIX, Row
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
"""Ledger accounts in memory, 200 bytes each."""

COLUMNS = "columns_match_the_payload"
POSTINGS = "transfers_match_payload_and_user_fields"
OPENINGS = "accounts_are_opened_once_before_every_date"
EVENTS = "net_events_equal_their_digest"
CHAINS = "posted_transactions_keep_their_rows"


class Finding(Struct):
    """Result of one invariant; `examples` are the first violations, ids only."""

    checked: int = 0
    violations: int = 0
    examples: list[str] = field(default_factory=list)

    def count(self, subject: str, *, holds: bool) -> None:
        """Count one check, and a violation where it does not hold."""
        self.checked += 1
        if not holds:
            self.violations += 1
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(subject)


async def verify(connection: asyncpg.Connection) -> dict[str, Finding]:
    """Check every invariant of the tables as they are at one moment."""
    findings: dict[str, Finding] = {}
    async with snapshot(connection):
        for invariant in INVARIANTS:
            row = await connection.fetchrow(invariant.query)
            assert row is not None
            findings[invariant.name] = Finding(row["checked"], row["violations"], list(row["examples"]))
        for check in (_rows, _openings, _events, _chains):
            findings.update(await check(connection))
    return findings


def totals(findings: Mapping[str, Finding]) -> dict[str, Any]:
    """Return all findings as one document: total `checked` and `violations`, and each invariant by name."""
    return {
        "checked": sum(finding.checked for finding in findings.values()),
        "violations": sum(finding.violations for finding in findings.values()),
        "invariants": msgspec.to_builtins(findings),
    }


async def _rows(connection: asyncpg.Connection) -> dict[str, Finding]:
    """Compare each row's columns with its payload, and its active transfers with payload and user fields."""
    columns, postings, book = Finding(), Finding(), Book()
    async for record in connection.cursor(_ROWS, prefetch=ROWS_AT_ONCE):
        subject = f"own id {record['own_id'].hex()}"
        row = _row(record)
        if len(book.accounts) > LEDGER_ACCOUNTS_MAX:
            book = Book()
        try:
            values, expected = rows.transaction_values(row)[-len(transaction.COLUMNS) :], posted(book, row)
        except (Quarantine, IndexError, ValueError, TypeError):
            columns.count(subject, holds=False)
            continue
        columns.count(subject, holds=values == tuple(record[name] for name in transaction.COLUMNS))
        stored = list(zip(record["debits"] or (), record["credits"] or (), record["amounts"] or (), strict=True))
        transfers = [(posting.debit.id, posting.credit.id, posting.amount) for posting in expected]
        postings.count(subject, holds=stored == transfers)
    return {COLUMNS: columns, POSTINGS: postings}


def _row(record: asyncpg.Record) -> Row:
    return Row(
        record["own_id"],
        record["item_id"],
        record["user_number"],
        record["transaction_id"],
        record["own_id_inherited"],
        record["payload"],
        record["payload_schema"],
        columns=None,
        postings=NOTHING,
        first_changeset=0,
        last_changeset=0,
        known_at=0,
        removed_at=to_micros(record["removed_at"]),
        user_fields=record["user_fields"],
        review=record["review"],
    )


async def _openings(connection: asyncpg.Connection) -> dict[str, Finding]:
    finding = Finding()
    unmatched = {row["own_id"]: row for row in await connection.fetch(_OPENING_TRANSFERS)}
    async for account in connection.cursor(_ACCOUNTS, prefetch=ROWS_AT_ONCE):
        own = opening_id(account["user_number"], account["item_id"], account["account_id"])
        transfers = unmatched.pop(own, None)
        if transfers is None or account["opened"] is None:
            holds = transfers is None and account["opened"] is None and not account["opening_transfers"]
        else:
            expected = (account["opening_transfers"], account["opened"])
            holds = transfers["is_opening"] and (transfers["transfers"], transfers["changeset"]) == expected
        finding.count(f"account {account['account_id']} of item {account['item_id']}", holds=holds)
    for own in unmatched:
        finding.count(f"transfers of own id {own.hex()}", holds=False)
    return {OPENINGS: finding}


async def _events(connection: asyncpg.Connection) -> dict[str, Finding]:
    finding = Finding()
    async for row in connection.cursor(_EVENTS, prefetch=EVENTS_AT_ONCE):
        try:
            block = rows.decompress(row["events"])
            holds = hashlib.sha256(block).digest() == row["digest"]
            holds = holds and len(public_events.decode_block(block)) == row["net_events"]
        except (zstandard.ZstdError, Quarantine, IndexError, ValueError):
            holds = False
        finding.count(f"changeset {row['partition']}.{row['source_offset']}", holds=holds)
    return {EVENTS: finding}


async def _chains(connection: asyncpg.Connection) -> dict[str, Finding]:
    """Check that a row which continues under another id of its Item was pending, or is matched, in one account."""
    finding = Finding()
    async for row in connection.cursor(_CHAINS, prefetch=ROWS_AT_ONCE):
        try:
            known = transaction.decode(row["payload_schema"], row["payload"])
            following = transaction.decode(row["next_schema"], row["next_payload"])
            holds = row["is_matched"] or (known.is_pending and known.account == following.account)
        except (Quarantine, IndexError, ValueError, TypeError):
            holds = False
        finding.count(f"own id {row['own_id'].hex()}", holds=holds)
    return {CHAINS: finding}


_ROWS = f"""
SELECT t.own_id, t.item_id, t.user_number, t.transaction_id, t.own_id_inherited, t.payload, t.payload_schema,
       t.removed_at, t.user_fields, t.review,
       {", ".join(f't."{name}"' for name in transaction.COLUMNS)}, l.debits, l.credits, l.amounts
  FROM transactions t LEFT JOIN LATERAL (
       SELECT array_agg(debit ORDER BY number) AS debits, array_agg(credit ORDER BY number) AS credits,
              array_agg(amount ORDER BY number) AS amounts
         FROM ledger_transfers l WHERE l.own_id = t.own_id AND l.number > t.transfers - t.active_transfers) l ON true"""

# Only openings have transfers without a transaction.
_OPENING_TRANSFERS = f"""
SELECT l.own_id, count(*) AS transfers, min(l.changeset) AS changeset,
       bool_and(l.effective = '-infinity' AND l.layer = '{POSTED}' AND l.reverses IS NULL) AS is_opening
  FROM ledger_transfers l
 WHERE NOT EXISTS (SELECT FROM transactions t WHERE t.own_id = l.own_id) GROUP BY l.own_id"""

_ACCOUNTS = "SELECT item_id, account_id, user_number, opened, opening_transfers FROM accounts"

_CHAINS = f"""
SELECT c.*, EXISTS (SELECT FROM transaction_matches m WHERE (m.item_id, m.transaction_id, m.own_id)
       = (c.item_id, c.next_id, c.own_id)) AS is_matched
  FROM (SELECT own_id, item_id, transaction_id, payload, payload_schema, lead(item_id) OVER following AS next_item,
               lead(transaction_id) OVER following AS next_id, lead(payload) OVER following AS next_payload,
               lead(payload_schema) OVER following AS next_schema
          FROM (SELECT own_id, version, item_id, transaction_id, payload, payload_schema FROM transaction_versions
                 UNION ALL
                SELECT own_id, version, item_id, transaction_id, payload, payload_schema FROM transactions
                 WHERE transaction_id NOT LIKE '{MERGED_PREFIX}%') AS versions
        WINDOW following AS (PARTITION BY own_id ORDER BY version)) AS c
 WHERE c.next_item = c.item_id AND c.next_id <> c.transaction_id"""

_EVENTS = """
SELECT partition, source_offset, digest, net_events, events FROM changesets WHERE events IS NOT NULL"""
