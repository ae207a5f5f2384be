"""Edits: append a user's edit of a transaction to the log and answer when readers see it."""

import json
from typing import Any, NamedTuple

import asyncpg
import msgspec

from gateway.handlers import edit_fields
from gateway.handlers.command_log import USER, CommandLog, accepted
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


class EditedTransaction(NamedTuple):
    """The row of a transaction as readers see it, and the Item it belongs to."""

    target: CommandTarget
    row: Row


class Edits:
    """Handlers of users' edits."""

    def __init__(self, commands: CommandLog, *, pool: asyncpg.Pool) -> None:
        self._commands = commands
        self._pool = pool

    async def edit_transaction(self, call: Call) -> Answer:
        """Append an edit, once a key, and return the transaction as readers see it then."""
        fields = _fields(call)
        target, row = await self._transaction(call)
        own_id = row["id"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        body = f"edit\0{own_id}\0{text}".encode()
        prepared = await self._commands.prepare(target, key=call.values["Idempotency-Key"], body=body)
        if not await self._commands.is_accepted(prepared):
            _check_splits(fields, row)
            event = codec.encode(Edit(own_id, row["transaction_id"], text))
            command = Command(gate.EDIT, [(TRANSACTION_EDITED, catalogue.EDIT, event)])
            cause = Cause(USER, by=call.tenant)
            if not await self._commands.append(target, command, prepared, cause=cause, wait_s=call.values["wait"]):
                return accepted(own_id, prepared)
        return ok((await self._transaction(call)).row)

    async def _transaction(self, call: Call) -> EditedTransaction:
        own_id: bytes = call.values["transaction_id"]
        async with snapshot(self._pool) as connection:
            owner = await connection.fetchrow(_TARGET, call.tenant, own_id)
            if owner is None:
                raise not_found("transaction")
            target = CommandTarget(*owner.values())
            row = await queries.transaction(connection, target.user, own_id)
        assert row is not None, "one snapshot shows the row twice"
        return EditedTransaction(target, row)


def _fields(call: Call) -> dict[str, Any]:
    """Return the fields that the body names; None clears a field.

    Raises: Problem 400, where it names none.
    """
    given = msgspec.json.decode(call.body, type=dict[str, msgspec.Raw]) if call.body else {}
    fields = {field.name: call.values[field.name] for field in edit_fields.FIELDS if field.name in given}
    if not fields:
        raise invalid(Fault("body", "must name a field"))
    return fields


def _check_splits(fields: dict[str, Any], row: Row) -> None:
    try:
        edit_fields.check_sum(fields, row["amount"], row["currency"])
    except ValueError as error:
        raise invalid(Fault("splits", str(error))) from None


# The Item, user and partition of a transaction now, of this tenant only.
_TARGET = """
    SELECT t.item_id, t.user_number, i.partition
    FROM reads.transactions t JOIN tartan.users u USING (user_number) JOIN reads.items i USING (item_id)
    WHERE u.tenant = $1 AND t.own_id = $2"""
