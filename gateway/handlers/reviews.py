"""Reviews: list transactions that wait for a decision, and append decisions to the log."""

from http import HTTPStatus
from typing import Any

import asyncpg

from gateway.handlers.command_log import USER, CommandLog, accepted
from gateway.handlers.ownership import user_of
from gateway.http import cursors
from gateway.http.database import snapshot
from gateway.http.idempotency import Answer
from gateway.http.problems import Fault, Problem, invalid, not_found
from gateway.http.requests import Call, ok
from projections.read import reviews
from projections.read.queries import Row
from projections.read.reviews import APPROVED, OPEN, REJECTED, ReviewTarget
from schemas.log.records import Cause

LIMIT_DEFAULT = 50


class Reviews:
    """Handlers of reviews."""

    def __init__(self, commands: CommandLog, *, pool: asyncpg.Pool) -> None:
        self._commands = commands
        self._pool = pool

    async def list_reviews(self, call: Call) -> Answer:
        """Return a page of a user's open reviews."""
        values = call.values
        scope = f"reviews\0{values['user_id']}"
        after = cursors.read(values["cursor"], scope) if values["cursor"] is not None else None
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            page = await reviews.list_open(connection, user, limit=values["limit"] or LIMIT_DEFAULT, after=after)
        next_cursor = cursors.write(page.next, scope) if page.next else None
        return ok({"reviews": page.rows, "next_cursor": next_cursor})

    list_user_reviews = list_reviews

    async def approve_review(self, call: Call) -> Answer:
        """Decide that the transaction duplicates a candidate, which continues with the bank's new values."""
        review = await self._review(call)
        own_id: bytes | None = call.values["own_id"]
        chosen = None if own_id is None else own_id.hex()
        if chosen is not None and chosen not in review.candidates:
            raise invalid(Fault("own_id", "is none of the candidates", chosen))
        if review.state != OPEN:
            chosen = chosen or review.chosen
        elif chosen is None:
            if len(review.available) != 1:
                raise invalid(Fault("own_id", "is missing: there are several candidates"))
            [chosen] = review.available
        return await self._decide(call, review, APPROVED, chosen)

    async def reject_review(self, call: Call) -> Answer:
        """Decide that the transaction is a separate purchase."""
        return await self._decide(call, await self._review(call), REJECTED, None)

    async def _decide(self, call: Call, review: ReviewTarget, decision: str, chosen: str | None) -> Answer:
        if review.state == OPEN:
            command = reviews.build_decision(review.id, approve=decision == APPROVED, own_id=chosen, by=call.tenant)
            body = f"review\0{review.id.hex()}\0{decision}\0{chosen}".encode()
            prepared = await self._commands.prepare(review.about, key=call.values["Idempotency-Key"], body=body)
            cause, wait_s = Cause(USER, by=call.tenant), call.values["wait"]
            if not await self._commands.is_accepted(prepared) and not await self._commands.append(
                review.about, command, prepared, cause=cause, wait_s=wait_s
            ):
                return accepted(review.id.hex(), prepared)
        return ok(await self._decided(review, decision, chosen))

    async def _decided(self, review: ReviewTarget, decision: str, chosen: str | None) -> Row:
        """Return the review's row after the decision.

        Raises: Problem 409, where the row has another decision.
        """
        async with snapshot(self._pool) as connection:
            row = await reviews.review(connection, review.id)
        assert row is not None, "reviews stay"
        if row["state"] == OPEN:
            raise _conflict("candidate_gone", "this candidate cannot be it any more: read the review again", row)
        if row["state"] != decision or row["chosen"] != chosen:
            raise _conflict("review_ended", f"the review was {row['state']} already", row)
        return row

    async def _review(self, call: Call) -> ReviewTarget:
        async with snapshot(self._pool) as connection:
            review = await reviews.find(connection, call.values["review_id"], tenant=call.tenant)
        if review is None:
            raise not_found("review")
        return review


def _conflict(kind: str, detail: str, row: dict[str, Any]) -> Problem:
    return Problem(HTTPStatus.CONFLICT, kind, detail, more={"review": row})
