"""Queries that only tests need."""

import asyncpg

from projections.read.queries import Row, to_json


async def transfers(connection: asyncpg.Connection, user: int, own_id: bytes) -> list[Row]:
    """Return the ledger transfers of one transaction, in the order of their numbers."""
    return [to_json(row) for row in await connection.fetch(_TRANSFERS, user, own_id)]


async def quarantined(connection: asyncpg.Connection) -> list[Row]:
    """Return the quarantined Items, the longest first, each with the number of its withheld records."""
    return [to_json(row) for row in await connection.fetch(_QUARANTINED)]


_TRANSFERS = """
SELECT number, debit, credit, amount, currency, layer, reverses, effective, partition, changeset, known_at
  FROM reads.ledger_transfers WHERE user_number = $1 AND own_id = $2 ORDER BY number"""

_QUARANTINED = """
SELECT k.item_id, k.reader, k.first_offset, k.partition, k.reason, k.quarantined_at,
       (SELECT count(*) FROM reads.withheld w WHERE w.item_id = k.item_id) AS withheld
  FROM tartan.quarantines k WHERE k.redrive_offset IS NULL ORDER BY k.quarantined_at, k.item_id"""
