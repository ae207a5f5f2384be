"""What a user says about a transaction: into the log, and answered when readers see it."""

import json
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg
import msgspec

from gateway.handlers import edit_fields
from gateway.handlers.command_log import USER, Sayings
from gateway.http.database import snapshot
from gateway.http.idempotency import Answer
from gateway.http.problems import Fault, invalid, not_found
from gateway.http.requests import Call, ok
from projections.read import queries
from projections.read.queries import Row
from runtime.users.commands import Command, CommandTarget
from schemas.encoding import catalogue, codec
from schemas.events import TRANSACTION_EDITED
from schemas.log import gate
from schemas.log.records import Cause, Edit


class Edited(NamedTuple):
    """A transaction that is edited: the Item that it lives in, and the row as readers see it."""

    about: CommandTarget
    row: Row


class Edits:
    """Handlers of what users say."""

    def __init__(self, sayings: Sayings, *, pool: asyncpg.Pool) -> None:
        self._sayings = sayings
        self._pool = pool

    async def edit_transaction(self, call: Call) -> Answer:
        """Keep what a user says, once a key, and give the transaction as readers see it then."""
        fields, key = _fields(call), call.values["Idempotency-Key"]
        edited = await self._edited(call)
        own_id = edited.row["id"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        ticket = await self._sayings.prepare(edited.about, key=key, body=f"edit\0{own_id}\0{text}".encode())
        if not await self._sayings.is_accepted(ticket):
            _check_splits(fields, edited.row)
            event = codec.encode(Edit(own_id, edited.row["transaction_id"], text))
            said = Command(gate.EDIT, [(TRANSACTION_EDITED, catalogue.EDIT, event)])
            cause = Cause(USER, by=call.tenant)
            if not await self._sayings.say(edited.about, said, ticket, cause=cause, wait_s=call.values["wait"]):
                told = {"id": own_id, "changeset": ticket.id.hex(), "status": "accepted"}
                return Answer(HTTPStatus.ACCEPTED, told)
        return ok((await self._edited(call)).row)

    async def _edited(self, call: Call) -> Edited:
        own_id: bytes = call.values["transaction_id"]
        async with snapshot(self._pool) as connection:
            where = await connection.fetchrow(_ABOUT, call.tenant, own_id)
            if where is None:
                raise not_found("transaction")
            about = CommandTarget(*where.values())
            row = await queries.transaction(connection, about.user, own_id)
        assert row is not None, "one snapshot shows the row twice"
        return Edited(about, row)


def _fields(call: Call) -> dict[str, Any]:
    """The fields that the body names; one that is null is to be cleared.

    Raises: Problem 400, where it names none.
    """
    if not call.body:
        raise invalid(Fault("body", "must name a field"))
    given = msgspec.json.decode(call.body, type=dict[str, msgspec.Raw])
    fields = {one.name: call.values[one.name] for one in edit_fields.FIELDS if one.name in given}
    if not fields:
        raise invalid(Fault("body", "must name a field"))
    return fields


def _check_splits(fields: dict[str, Any], row: Row) -> None:
    try:
        edit_fields.check_sum(fields, row["amount"], row["currency"])
    except ValueError as error:
        raise invalid(Fault("splits", str(error))) from None


# Where a transaction lives now, of this tenant only.
_ABOUT = """
    SELECT t.item_id, t.user_number, i.partition
    FROM reads.transactions t JOIN tartan.users u USING (user_number) JOIN reads.items i USING (item_id)
    WHERE u.tenant = $1 AND t.own_id = $2"""
