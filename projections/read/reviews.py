"""Reviews for those who decide: what waits, with the transactions it is about, and a decision as a free record."""

import datetime
import json
from typing import Any, NamedTuple

import asyncpg

from projections.read import queries
from projections.read.queries import Row
from runtime.users.commands import Command, CommandTarget
from schemas.encoding import catalogue, codec
from schemas.events import APPROVE_REVIEW, DECISION_MADE, REJECT_REVIEW
from schemas.log import gate
from schemas.log.records import Decision

REVIEWS_MAX = 100
"""Reviews of a page: each shows two or three transactions."""

OPEN, APPROVED, REJECTED = "open", "approved", "rejected"


class Page(NamedTuple):
    """Reviews and, where more follow, day and id of the last one."""

    rows: list[Row]
    next: tuple[datetime.date, bytes] | None


class ReviewTarget(NamedTuple):
    """A review: the Item whose transaction it holds, its state and its candidates, by own id as text.

    `available`: those that it may still be.
    """

    about: CommandTarget
    id: bytes
    state: str
    chosen: str | None
    candidates: frozenset[str]
    available: frozenset[str]


async def list_open(
    connection: asyncpg.Connection,
    user: int | None = None,
    *,
    limit: int = REVIEWS_MAX,
    after: tuple[datetime.date, bytes] | None = None,
) -> Page:
    """A page of open reviews, of one user or of all, the latest days first; `after` is the `next` of the page before.

    The connection must be in a snapshot.
    """
    limit = min(limit, REVIEWS_MAX)
    day, last = after or (None, None)
    rows = await connection.fetch(_OPEN, user, day, last, limit + 1)
    more = len(rows) > limit
    shown = [await _told(connection, row) for row in rows[:limit]]
    return Page(shown, (rows[limit - 1]["day"], rows[limit - 1]["id"]) if more else None)


async def review(connection: asyncpg.Connection, review_id: bytes) -> Row | None:
    """One review, whatever its state."""
    row = await connection.fetchrow(_ONE, review_id)
    return None if row is None else await _told(connection, row)


async def find(connection: asyncpg.Connection, review_id: bytes, *, tenant: str | None = None) -> ReviewTarget | None:
    """What a decision has to know of a review; of this tenant only, where one is named."""
    row = await connection.fetchrow(_WHERE, review_id, tenant)
    if row is None:
        return None
    about = CommandTarget(row["item_id"], row["user_number"], row["partition"])
    told = await _told(connection, row)
    return ReviewTarget(
        about,
        review_id,
        told["state"],
        told["chosen"],
        frozenset(one["own_id"] for one in json.loads(row["candidates"])),
        frozenset(one["transaction"]["id"] for one in told["candidates"]),
    )


def build_decision(review_id: bytes, *, approve: bool, own_id: str | None = None, by: str | None = None) -> Command:
    """That the held transaction is the candidate with this own id, or the only one there is; or that it is none."""
    detail = None if own_id is None else json.dumps({"own_id": own_id})
    made = Decision(review_id.hex(), APPROVE_REVIEW if approve else REJECT_REVIEW, by, detail)
    return Command(gate.DECISION, [(DECISION_MADE, catalogue.DECISION, codec.encode(made))])


async def _told(connection: asyncpg.Connection, row: asyncpg.Record) -> Row:
    """A review with its transactions; while it is open, with those candidates only that the held one may still be."""
    user, is_open = row["user_number"], row["state"] == OPEN
    held = await queries.transaction(connection, user, row["own_id"])
    assert held is not None, "a review holds a transaction as long as it is there"
    candidates: list[dict[str, Any]] = [
        {
            "rule": one["rule"],
            "score": one["score"],
            "evidence": one["evidence"],
            "transaction": await queries.transaction(connection, user, bytes.fromhex(one["own_id"])),
        }
        for one in json.loads(row["candidates"])
    ]
    shown = queries.to_json(row)
    return {
        **{name: shown[name] for name in ("id", "item_id", "state", "reason", "chosen", "known_at", "decided_at")},
        "transaction": held,
        "candidates": [one for one in candidates if not is_open or _may_be(held, one)],
    }


def _may_be(held: Row, candidate: Row) -> bool:
    """Whether a decision can still name this candidate, as far as readers see (matching.transactions decides it)."""
    known: Row | None = candidate["transaction"]
    if known is None or known["status"] == queries.IN_REVIEW:
        return False
    is_gone, was_gone = known["status"] == queries.REMOVED, candidate["evidence"]["old_was_removed"]
    lives_apart = (known["item_id"], known["account_id"]) != (held["item_id"], held["account_id"])
    return is_gone if was_gone else not is_gone and lives_apart


_COLUMNS = """id, user_number, item_id, own_id, candidates, reason, state, chosen, known_at, decided_at,
       (known_at AT TIME ZONE 'UTC')::date AS day"""

_OPEN = f"""
SELECT {_COLUMNS} FROM reads.reviews
 WHERE state = 'open' AND ($1::bigint IS NULL OR user_number = $1)
   AND ($2::date IS NULL OR ((known_at AT TIME ZONE 'UTC')::date, id) < ($2, $3::bytea))
 ORDER BY day DESC, id DESC LIMIT $4"""

_ONE = f"SELECT {_COLUMNS} FROM reads.reviews WHERE id = $1"

_WHERE = """
SELECT r.*, i.partition
  FROM reads.reviews r JOIN reads.items i USING (item_id) JOIN tartan.users u ON u.user_number = r.user_number
 WHERE r.id = $1 AND ($2::text IS NULL OR u.tenant = $2)"""
