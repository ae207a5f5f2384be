"""The command `tartan tail`: print a topic's records for people, from any offset or time on.

Steps: resolve topic, start, user and Item; read records; format each; filter; unseal changesets; print.
"""

import datetime
import sys
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, NamedTuple

import asyncpg
import msgspec
import typer
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from cli.operate.commands import By, decided_by, names, topic_of
from cli.operate.tail_format import Line, RecordFilter, format_line, read_line, unseal_line
from cli.output import connected, print_json, run
from runtime import settings
from runtime.kafka.clients import connection, partition_of
from runtime.settings import Settings
from runtime.users import keys as users
from runtime.users.keys import Destroyed, Keyring
from runtime.users.vault import Vault
from schemas.errors import Quarantine, Retry
from schemas.log import changesets
from schemas.topics import CHANGESETS, DEAD_LETTERS, PUSH, TOPICS, WEBHOOKS, Topic, full_name, user_key

BEGINNING, END = "beginning", "end"
WAIT_MS = 500
"""Longest wait of one fetch: Ctrl-C and `--limit` are checked between two."""
COLOURS = {"added": "green", "linked": "green", "removed": "red", "unlinked": "red", "broken": "red"}
"""Colours by the last word of an event type; others are cyan."""

Start = int | str | datetime.datetime
"""An offset, BEGINNING, END, or a time."""


class _Options(NamedTuple):
    """Records to read: topic, partition, start and number."""

    topic: Topic
    partition: int | None
    start: Start
    limit: int | None
    follow: bool
    as_json: bool


def tail(
    name: Annotated[str, typer.Argument(metavar="TOPIC", help=f"Topic to read: {names(TOPICS)}.")],
    user: Annotated[
        str | None,
        typer.Option(
            help="Print only records of this user: tenant:id of your application, or the user's number in topics."
        ),
    ] = None,
    item: Annotated[str | None, typer.Option(help="Print only records of this Item, by Plaid's id.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="First record: beginning, end, an offset, or a time as 2026-01-31T08:00 in UTC.",
            show_default="end; beginning with --no-follow",
        ),
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Read only this partition.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this number of records.")] = None,
    follow: Annotated[
        bool, typer.Option(help="Wait for new records at the end of the topic; otherwise stop there.")
    ] = True,
    unseal: Annotated[
        bool,
        typer.Option(
            "--unseal", help="Decrypt changesets with the users' keys; each is reported on standard error with --by."
        ),
    ] = False,
    by: By = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each record.")] = False,
) -> None:
    """Print a topic's records for people: time, type, amount, name, account, user and offset."""
    topic = topic_of(name, TOPICS)
    if unseal and topic is not CHANGESETS:
        raise typer.BadParameter(f"--unseal is for {CHANGESETS.name}: nothing in {name} is sealed for reading")
    if item is not None and topic is PUSH:
        raise typer.BadParameter("--item: a message about a transaction names no Item; use --user")
    begin = _start_of(start or (END if follow else BEGINNING))
    options = _Options(topic, partition, begin, limit, follow, as_json)
    run(_tail(options, user, item, decided_by(by) if unseal else None))


def _start_of(text: str) -> Start:
    if text in (BEGINNING, END):
        return text
    if text.isdigit():
        return int(text)
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--from {text}: is not beginning, end, an offset or a time") from None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


async def _tail(options: _Options, user: str | None, item: str | None, unsealed_by: str | None) -> None:
    """Print records; with `unsealed_by`, decrypt changesets in the name of this person."""
    loaded = settings.load()
    async with AsyncExitStack() as stack:
        keyring = Keyring(Vault(loaded.master_key()))
        record_filter = RecordFilter(item=item)
        if user is not None or unsealed_by is not None:
            database = await stack.enter_async_context(connected(loaded))
        if user is not None:
            record_filter = await _filter_of(database, user, item=item)
        partitions = _partitions(loaded, options, record_filter)
        records = await stack.enter_async_context(aclosing(_records(loaded, options, partitions)))
        printed = 0
        async for record in records:
            line = read_line(options.topic, record)
            if not record_filter.shows(line):
                continue
            if unsealed_by is not None and line.broken is None:
                line = await _unseal(line, record, keyring, database, unsealed_by)
            if options.as_json:
                print_json(line)
            else:
                colour = COLOURS.get(line.type.rpartition(".")[2], "cyan")
                typer.echo(format_line(line).replace(line.type, typer.style(line.type, fg=colour), 1))
            sys.stdout.flush()
            printed += 1
            if printed == options.limit:
                return


async def _filter_of(database: asyncpg.Connection, user: str, *, item: str | None) -> RecordFilter:
    """Build the filter of a user with all Items. Raises: Quarantine, where the user is unknown or erased."""
    if user.isdigit():
        row = await database.fetchrow("SELECT tenant, user_id FROM tartan.users WHERE user_number = $1", int(user))
        owner = None if row is None else users.User(int(user), row["tenant"], row["user_id"])  # type: ignore[arg-type]
    else:
        tenant, colon, user_id = user.partition(":")
        if not colon:
            raise typer.BadParameter(f"--user {user}: is not tenant:id, and no number")
        owner = await users.find(database, tenant=tenant, user_id=user_id)
    if owner is None:
        raise Quarantine(f"there is no user {user}, or the user was erased")
    rows = await database.fetch("SELECT item_id FROM tartan.credentials WHERE user_number = $1", owner.number)
    items = frozenset(row["item_id"] for row in rows)
    return RecordFilter((owner.tenant, owner.user_id), owner.number, items, item)


def _partitions(loaded: Settings, options: _Options, record_filter: RecordFilter) -> Collection[int]:
    if options.partition is not None:
        if options.partition >= loaded.partitions:
            raise typer.BadParameter(f"--partition {options.partition}: the topics have {loaded.partitions}")
        return [options.partition]
    if record_filter.user_number is not None and options.topic not in (WEBHOOKS, DEAD_LETTERS):
        return [partition_of(user_key(record_filter.user_number), loaded.partitions)]
    return range(loaded.partitions)


async def _records(
    loaded: Settings, options: _Options, numbers: Collection[int]
) -> AsyncGenerator[ConsumerRecord, None]:
    """Yield records in the order of their partitions; those of one fetch in the order of their times."""
    name = full_name(options.topic, loaded.topic_prefix)
    consumer = AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        **connection(loaded),
    )
    try:
        await consumer.start()
        if name not in await consumer.topics():
            raise Quarantine(f"the cluster has no topic {name}: run `tartan topics apply`")
        partitions = [TopicPartition(name, number) for number in numbers]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition, offset in (await _starts(consumer, partitions, options.start)).items():
            consumer.seek(partition, offset)
        while options.follow or any([await consumer.position(each) < ends[each] for each in partitions]):
            batches = (await consumer.getmany(timeout_ms=WAIT_MS)).values()
            fetched = [record for batch in batches for record in batch]
            for record in sorted(fetched, key=lambda record: (record.timestamp, record.offset)):
                yield record
    except KafkaError as error:
        raise Retry(f"topic {name}: {type(error).__name__}") from error
    finally:
        await consumer.stop()


async def _starts(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], start: Start
) -> Mapping[TopicPartition, int]:
    firsts, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    match start:
        case int():
            return {partition: min(max(start, firsts[partition]), ends[partition]) for partition in partitions}
        case datetime.datetime():
            times = dict.fromkeys(partitions, int(start.timestamp() * 1000))
            offsets = await consumer.offsets_for_times(times)
            return {partition: offset.offset if offset else ends[partition] for partition, offset in offsets.items()}
    return firsts if start == BEGINNING else ends  # type: ignore[no-any-return]


async def _unseal(
    line: Line, record: ConsumerRecord, keyring: Keyring, database: asyncpg.Connection, person: str
) -> Line:
    """Add a changeset's events to its line, after a line on standard error that names the person."""
    user = changesets.read(record.value or b"").head.user
    keys = (await keyring.of(database, [user])).get(user)
    if keys is None or isinstance(keys, Destroyed):
        reason = "the user was erased" if keys else "the user has no key"
        return msgspec.structs.replace(line, broken=f"stays sealed: {reason}")
    offset = f"{line.partition}@{line.offset}"
    typer.echo(f"tartan: {person} unseals changeset {line.detail['id']} at {offset}, user {user}", err=True)
    try:
        return unseal_line(line, record.value or b"", keys)
    except Quarantine as error:
        return msgspec.structs.replace(line, broken=str(error))
