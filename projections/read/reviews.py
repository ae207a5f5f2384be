"""Reviews for those who decide them: open reviews with their transactions, and a decision as a free record."""

import datetime
import json
from typing import NamedTuple

import asyncpg

from projections.read import queries
from projections.read.queries import Page, Row
from runtime.users.commands import Command, CommandTarget
from schemas.encoding import catalogue, codec
from schemas.events import APPROVE_REVIEW, DECISION_MADE, REJECT_REVIEW
from schemas.log import gate
from schemas.log.records import Decision

REVIEWS_MAX = 100
"""Reviews of a page: each shows two or three transactions."""

OPEN, APPROVED, REJECTED = "open", "approved", "rejected"


class ReviewTarget(NamedTuple):
    """A review with the Item of its withheld transaction, its state and the own ids of its candidates as text.

    `available`: candidates that a decision can still name.
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
    """Return a page of open reviews, of one user or of all, the latest days first.

    `after` is the `next` of the page before. The connection must be in a snapshot.
    """
    limit = min(limit, REVIEWS_MAX)
    rows = await connection.fetch(_OPEN, user, *(after or (None, None)), limit + 1)
    page = rows[:limit]
    shown = [await _review(connection, row) for row in page]
    return Page(shown, (page[-1]["day"], page[-1]["id"]) if len(rows) > limit else None)


async def review(connection: asyncpg.Connection, review_id: bytes) -> Row | None:
    """Return one review, whatever its state."""
    row = await connection.fetchrow(_ONE, review_id)
    return None if row is None else await _review(connection, row)


async def find(connection: asyncpg.Connection, review_id: bytes, *, tenant: str | None = None) -> ReviewTarget | None:
    """Return the facts that a decision about a review needs; only of this tenant, where one is named."""
    row = await connection.fetchrow(_WITH_PARTITION, review_id, tenant)
    if row is None:
        return None
    shown = await _review(connection, row)
    return ReviewTarget(
        CommandTarget(row["item_id"], row["user_number"], row["partition"]),
        review_id,
        shown["state"],
        shown["chosen"],
        frozenset(candidate["own_id"] for candidate in json.loads(row["candidates"])),
        frozenset(candidate["transaction"]["id"] for candidate in shown["candidates"]),
    )


def build_decision(review_id: bytes, *, approve: bool, own_id: str | None = None, by: str | None = None) -> Command:
    """Build a decision about a review.

    Approval: the withheld transaction is the candidate `own_id`, or the only one there is. Rejection: it is none.
    """
    detail = None if own_id is None else json.dumps({"own_id": own_id})
    decision = Decision(review_id.hex(), APPROVE_REVIEW if approve else REJECT_REVIEW, by, detail)
    return Command(gate.DECISION, [(DECISION_MADE, catalogue.DECISION, codec.encode(decision))])


async def _review(connection: asyncpg.Connection, row: asyncpg.Record) -> Row:
    """Return a review with its transactions; while it is open, only with the candidates that are still possible."""
    user, is_open = row["user_number"], row["state"] == OPEN
    withheld = await queries.transaction(connection, user, row["own_id"])
    assert withheld is not None, "the transaction of a review exists as long as the review"
    candidates = [
        {
            **{name: candidate[name] for name in ("rule", "score", "evidence")},
            "transaction": await queries.transaction(connection, user, bytes.fromhex(candidate["own_id"])),
        }
        for candidate in json.loads(row["candidates"])
    ]
    shown = queries.to_json(row)
    return {
        **{name: shown[name] for name in ("id", "item_id", "state", "reason", "chosen", "known_at", "decided_at")},
        "transaction": withheld,
        "candidates": [candidate for candidate in candidates if not is_open or _is_possible(withheld, candidate)],
    }


def _is_possible(withheld: Row, candidate: Row) -> bool:
    """Check that a decision can still name this candidate, as far as readers see (matching.transactions decides)."""
    known: Row | None = candidate["transaction"]
    if known is None or known["status"] == queries.IN_REVIEW:
        return False
    is_gone, was_gone = known["status"] == queries.REMOVED, candidate["evidence"]["old_was_removed"]
    is_elsewhere = (known["item_id"], known["account_id"]) != (withheld["item_id"], withheld["account_id"])
    return is_gone if was_gone else not is_gone and is_elsewhere


_COLUMNS = """id, user_number, item_id, own_id, candidates, reason, state, chosen, known_at, decided_at,
       (known_at AT TIME ZONE 'UTC')::date AS day"""

_OPEN = f"""
SELECT {_COLUMNS} FROM reads.reviews
 WHERE state = 'open' AND ($1::bigint IS NULL OR user_number = $1)
   AND ($2::date IS NULL OR ((known_at AT TIME ZONE 'UTC')::date, id) < ($2, $3::bytea))
 ORDER BY day DESC, id DESC LIMIT $4"""

_ONE = f"SELECT {_COLUMNS} FROM reads.reviews WHERE id = $1"

_WITH_PARTITION = """
SELECT r.*, i.partition
  FROM reads.reviews r JOIN reads.items i USING (item_id) JOIN tartan.users u ON u.user_number = r.user_number
 WHERE r.id = $1 AND ($2::text IS NULL OR u.tenant = $2)"""
