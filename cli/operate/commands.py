"""Operators' commands: append one to the log and wait until the stages have read it."""

import getpass
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
import typer

from projections.store.tables import SCHEMA
from runtime import settings
from runtime.kafka.clients import Appender
from runtime.operators import operator_commands
from runtime.operators.operator_commands import Operator, Outcome
from runtime.scheduler import item_status
from runtime.scheduler.item_status import ItemStatus
from runtime.scheduler.stop_reasons import QUARANTINED
from runtime.users import keys
from runtime.users.commands import Command, CommandWriter
from runtime.users.vault import Vault
from schemas.errors import Quarantine
from schemas.topics import Topic

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the effect of the command and change nothing.")]
By = Annotated[
    str,
    typer.Option(
        help="Name of the person who decides, stored in the log; by default the name that is logged in.",
        envvar="TARTAN_OPERATOR",
        show_default=False,
    ),
]


@asynccontextmanager
async def command_writer() -> AsyncIterator[CommandWriter]:
    """Open a writer of commands with its own producer."""
    loaded = settings.load()
    appender = Appender(loaded, client="operator")
    try:
        yield CommandWriter(loaded, appender, Vault(loaded.master_key()))
    finally:
        await appender.stop()


async def append_and_wait(
    connection: asyncpg.Connection, operator: Operator, item: ItemStatus, command: Command
) -> dict[str, Any]:
    """Append a command about an Item; return its outcome, partition and offset.

    Raises: Quarantine, where a decision was read and changed nothing.
    """
    appended = await operator.append(connection, item, command)
    offset = {"partition": appended.partition, "offset": appended.offset}
    if not await operator_commands.is_read(connection, appended):
        return {"outcome": Outcome.APPENDED, **offset}
    after = await find_item(connection, item.item_id)
    if after.stopped == QUARANTINED:
        reasons = [quarantine.reason for quarantine in after.quarantines]
        return {"outcome": Outcome.FAILED_AGAIN, "reasons": reasons, **offset}
    is_same_removal = after.missing_rows and after.missing_changeset_id == item.missing_changeset_id
    if is_same_removal and item.missing_rows and command.events:
        raise Quarantine(f"item {item.item_id}: the decision was read and changed nothing; check its history")
    return {"outcome": Outcome.DONE, **offset}


async def find_item(connection: asyncpg.Connection, item_id: str) -> ItemStatus:
    """Return the status of an Item. Raises: Quarantine, where it is unknown or its user was erased."""
    item = await item_status.find(connection, item_id, projection=SCHEMA)
    if item is None:
        raise Quarantine(f"there is no item {item_id}, or its user was erased")
    return item


def names(topics: Iterable[Topic]) -> str:
    """Return the names of topics, separated by commas."""
    return ", ".join(topic.name for topic in topics)


def topic_of(name: str, topics: Sequence[Topic]) -> Topic:
    """Return the topic of this name. Raises: typer.BadParameter, where it is none of `topics`."""
    for topic in topics:
        if topic.name == name:
            return topic
    raise typer.BadParameter(f"{name} is no topic of these: {names(topics)}")


async def user_number(connection: asyncpg.Connection, tenant: str, user_id: str) -> int:
    """Return the number of a user in the log. Raises: Quarantine, where the tenant has no such user."""
    user = await keys.find(connection, tenant=tenant, user_id=user_id)
    if user is None:
        raise Quarantine(f"tenant {tenant} has no user {user_id}")
    return user.number


def decided_by(name: str) -> str:
    """Return the given name of the operator, or else the name that is logged in here."""
    try:
        return name or getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without names
        return "operator"
