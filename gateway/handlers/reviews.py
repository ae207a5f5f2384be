"""Reviews: what waits for a person, and what the person decides, into the log and answered when readers see it."""

from http import HTTPStatus
from typing import Any

import asyncpg

from gateway.handlers.command_log import USER, Sayings
from gateway.handlers.reads import user_of
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

    def __init__(self, sayings: Sayings, *, pool: asyncpg.Pool) -> None:
        self._sayings = sayings
        self._pool = pool

    async def list_reviews(self, call: Call) -> Answer:
        """A page of a user's open reviews."""
        values = call.values
        scope = f"reviews\0{values['user_id']}"
        after = cursors.read(values["cursor"], scope) if values["cursor"] is not None else None
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            page = await reviews.list_open(connection, user, limit=values["limit"] or LIMIT_DEFAULT, after=after)
        following = cursors.write(page.next, scope) if page.next else None
        return ok({"reviews": page.rows, "next_cursor": following})

    async def list_user_reviews(self, call: Call) -> Answer:
        """The same, by the user's own path."""
        return await self.list_reviews(call)

    async def approve_review(self, call: Call) -> Answer:
        """The held transaction is one that was known: that one goes on, with the bank's words about the held one."""
        found = await self._found(call)
        own: bytes | None = call.values["own_id"]
        chosen = None if own is None else own.hex()
        if chosen is not None and chosen not in found.candidates:
            raise invalid(Fault("own_id", "is none of the candidates", chosen))
        if found.state != OPEN:
            chosen = chosen or found.chosen
        elif chosen is None:
            if len(found.available) != 1:
                raise invalid(Fault("own_id", "is missing: there are several candidates"))
            [chosen] = found.available
        return await self._decide(call, found, APPROVED, chosen)

    async def reject_review(self, call: Call) -> Answer:
        """The held transaction is a purchase of its own."""
        return await self._decide(call, await self._found(call), REJECTED, None)

    async def _decide(self, call: Call, found: ReviewTarget, wanted: str, chosen: str | None) -> Answer:
        if found.state == OPEN:
            said = reviews.build_decision(found.id, approve=wanted == APPROVED, own_id=chosen, by=call.tenant)
            body = f"review\0{found.id.hex()}\0{wanted}\0{chosen}".encode()
            ticket = await self._sayings.prepare(found.about, key=call.values["Idempotency-Key"], body=body)
            cause, wait_s = Cause(USER, by=call.tenant), call.values["wait"]
            if not await self._sayings.is_accepted(ticket) and not await self._sayings.say(
                found.about, said, ticket, cause=cause, wait_s=wait_s
            ):
                told = {"id": found.id.hex(), "changeset": ticket.id.hex(), "status": "accepted"}
                return Answer(HTTPStatus.ACCEPTED, told)
        return ok(await self._outcome(found, wanted, chosen))

    async def _outcome(self, found: ReviewTarget, wanted: str, chosen: str | None) -> Row:
        """The review as it stands. Raises: Problem 409, where it stands otherwise than decided."""
        async with snapshot(self._pool) as connection:
            row = await reviews.review(connection, found.id)
        assert row is not None, "reviews stay"
        if row["state"] == OPEN:
            raise _conflict("candidate_gone", "this candidate cannot be it any more: read the review again", row)
        if row["state"] != wanted or row["chosen"] != chosen:
            raise _conflict("review_ended", f"the review was {row['state']} already", row)
        return row

    async def _found(self, call: Call) -> ReviewTarget:
        async with snapshot(self._pool) as connection:
            found = await reviews.find(connection, call.values["review_id"], tenant=call.tenant)
        if found is None:
            raise not_found("review")
        return found


def _conflict(kind: str, detail: str, row: dict[str, Any]) -> Problem:
    return Problem(HTTPStatus.CONFLICT, kind, detail, more={"review": row})
