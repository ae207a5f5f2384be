"""Incidents: what operators have to know, once each. Open while it lasts, however often it is seen."""

import asyncpg

from runtime.dues import Claimed, Released

SYNC_FAILING, ITEM_PARKED, ITEM_REFUSED, ITEM_GONE = "sync_failing", "item_parked", "item_refused", "item_gone"
INSTITUTION_DOWN, RATE_LIMITED, TOO_MANY_GONE = "institution_down", "rate_limited", "too_many_gone"
REMOVALS_WITHHELD, WEBHOOKS_MISSED, DEAD_LETTERS = "removals_withheld", "webhooks_missed", "dead_letters"
KINDS = (
    SYNC_FAILING, ITEM_PARKED, ITEM_REFUSED, ITEM_GONE, INSTITUTION_DOWN, RATE_LIMITED, TOO_MANY_GONE,
    REMOVALS_WITHHELD, WEBHOOKS_MISSED, DEAD_LETTERS,
)  # fmt: skip
FAILING_AFTER = 5
"""Failures in a row before a sync counts as failing: the quick attempts are over, what follows takes hours."""
DETAIL_CHARACTERS_MAX = 500


async def seen(connection: asyncpg.Connection, kind: str, subject: str, detail: str) -> None:
    """Open an incident, or count it once more while it is open."""
    await connection.execute(_SEEN, kind, subject, detail[:DETAIL_CHARACTERS_MAX])


async def over(connection: asyncpg.Connection, kind: str, subject: str) -> None:
    """Close an incident, if it is open."""
    await connection.execute(_OVER, [kind], subject)


async def after_pass(connection: asyncpg.Connection, claimed: Claimed, result: Released) -> None:
    """Open or close what a pass over an Item says of it."""
    if result.stopped in _OF_STOPPED:
        await seen(connection, _OF_STOPPED[result.stopped], claimed.item_id, _code(result))
    elif result.outcome == "failed":
        if result.attempts >= FAILING_AFTER:
            await seen(connection, SYNC_FAILING, claimed.item_id, _code(result))
    elif claimed.attempts >= FAILING_AFTER:
        await over(connection, SYNC_FAILING, claimed.item_id)


_OF_STOPPED = {"parked": ITEM_PARKED, "refused": ITEM_REFUSED, "gone": ITEM_GONE}


def _code(result: Released) -> str:
    error = result.error or {}
    return f"{error.get('code', '')}: {error.get('detail', '')}"


_SEEN = """
    INSERT INTO tartan.incidents AS i (kind, subject, detail, opened_at, last_at)
    VALUES ($1, $2, $3, tartan.clock(), tartan.clock())
    ON CONFLICT (kind, subject) WHERE closed_at IS NULL DO UPDATE
    SET count = i.count + 1, last_at = tartan.clock(), detail = excluded.detail"""

_OVER = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE kind = ANY($1::text[]) AND subject = $2 AND closed_at IS NULL"""
