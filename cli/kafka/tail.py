"""The command `tartan tail`: a topic's records as a person reads them, as they come or from any point on."""

import datetime
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Annotated, Any, NamedTuple

import asyncpg
import msgspec
import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from cli.kafka.tail_format import Line, Raw, Wanted, line, shown, unsealed
from cli.operations import By, decided_by
from cli.output import connected, finish
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
"""Of one fetch: Ctrl-C and `--limit` are looked at between two."""
COLOURS = {"added": "green", "linked": "green", "removed": "red", "unlinked": "red", "broken": "red"}
"""Of the last word of a type; others are cyan."""

Start = int | str | datetime.datetime
"""An offset, BEGINNING, END, or a time."""


class _Options(NamedTuple):
    """What is read, from where on, and how much of it."""

    topic: Topic
    partition: int | None
    start: Start
    limit: int | None
    follow: bool
    as_json: bool


def tail(
    topic: Annotated[str, typer.Argument(help=f"One of {', '.join(one.name for one in TOPICS)}.")],
    user: Annotated[
        str | None, typer.Option(help="Of this user only: tenant:id of your application, or the number in topics.")
    ] = None,
    item: Annotated[str | None, typer.Option(help="Of this Item only: Plaid's id.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="beginning, end, an offset, or a time as 2026-01-31T08:00 in UTC.",
            show_default="end; beginning with --no-follow",
        ),
    ] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Of this partition only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    follow: Annotated[bool, typer.Option(help="Wait for what comes; otherwise stop at the end.")] = True,
    unseal: Annotated[
        bool, typer.Option("--unseal", help="Open changesets with the users' keys; each is told on standard error.")
    ] = False,
    by: By = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a record.")] = False,
) -> None:
    """Print a topic's records as a person reads them: time, type, amount, name, account, whose, and the place."""
    found = next((one for one in TOPICS if one.name == topic), None)
    if found is None:
        raise typer.BadParameter(f"{topic} is no topic; they are {', '.join(one.name for one in TOPICS)}")
    if unseal and found is not CHANGESETS:
        raise typer.BadParameter(f"--unseal is for {CHANGESETS.name}: nothing in {topic} is sealed for reading")
    if item is not None and found is PUSH:
        raise typer.BadParameter("--item: a message about a transaction names no Item; use --user")
    begin = start_of(start or (END if follow else BEGINNING))
    finish(_tail(_Options(found, partition, begin, limit, follow, as_json), user, item, decided_by(by), unseal=unseal))


def start_of(text: str) -> Start:
    """Where to begin. Raises: typer.BadParameter, where the text says nothing of the kind."""
    if text in (BEGINNING, END):
        return text
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--from {text}: is not beginning, end, an offset or a time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


async def _tail(options: _Options, user: str | None, item: str | None, who: str, *, unseal: bool) -> None:
    loaded = settings.load()
    async with AsyncExitStack() as stack:
        database = None
        if user is not None or unseal:
            database = await stack.enter_async_context(connected(loaded))
        keyring = Keyring(Vault(loaded.master_key())) if unseal else None
        wanted = Wanted(item=item)
        if user is not None and database is not None:
            wanted = await wanted_of(database, user, item=item)
        left = options.limit
        raws = await stack.enter_async_context(
            aclosing(_records(loaded, options, _partitions(loaded, options, wanted)))
        )
        async for raw in raws:
            told = line(raw)
            if not wanted.shows(told):
                continue
            if keyring is not None and database is not None and told.broken is None:
                told = await _unsealed(told, raw, keyring, database, who)
            _say(told, as_json=options.as_json)
            left = None if left is None else left - 1
            if left == 0:
                return


async def wanted_of(database: asyncpg.Connection, user: str, *, item: str | None) -> Wanted:
    """A user by both names, with all Items. Raises: Quarantine, where there is none of this name."""
    if user.isdigit():
        row = await database.fetchrow("SELECT tenant, user_id FROM tartan.users WHERE user_number = $1", int(user))
        found = None if row is None else users.User(int(user), row["tenant"], row["user_id"])  # type: ignore[arg-type]
    else:
        tenant, colon, user_id = user.partition(":")
        if not colon:
            raise typer.BadParameter(f"--user {user}: is not tenant:id, and no number")
        found = await users.find(database, tenant=tenant, user_id=user_id)
    if found is None:
        raise Quarantine(f"there is no user {user}, or the user was erased")
    items = await database.fetch("SELECT item_id FROM tartan.credentials WHERE user_number = $1", found.number)
    return Wanted((found.tenant, found.user_id), found.number, frozenset(row["item_id"] for row in items), item)


def _partitions(loaded: Settings, options: _Options, wanted: Wanted) -> Collection[int]:
    if options.partition is not None:
        if options.partition >= loaded.partitions:
            raise typer.BadParameter(f"--partition {options.partition}: the topics have {loaded.partitions}")
        return [options.partition]
    if wanted.user_number is not None and options.topic not in (WEBHOOKS, DEAD_LETTERS):
        return [partition_of(user_key(wanted.user_number), loaded.partitions)]
    return range(loaded.partitions)


async def _records(loaded: Settings, options: _Options, partitions: Collection[int]) -> AsyncGenerator[Raw, None]:
    """Records in the order of their partitions; those that come in one fetch in the order of their times."""
    name = full_name(options.topic, loaded.topic_prefix)
    try:
        async with _consumer(loaded, name) as consumer:
            places = [TopicPartition(name, number) for number in partitions]
            consumer.assign(places)
            starts, ends = await _starts(consumer, places, options.start), await consumer.end_offsets(places)
            for place, at in starts.items():
                consumer.seek(place, at)
            while options.follow or any([await consumer.position(place) < ends[place] for place in places]):
                fetched = (await consumer.getmany(timeout_ms=WAIT_MS)).values()
                for record in sorted((one for batch in fetched for one in batch), key=_in_time):
                    yield _raw(options.topic, record)
    except KafkaError as error:
        raise Retry(f"topic {name}: {type(error).__name__}") from error


@asynccontextmanager
async def _consumer(loaded: Settings, name: str) -> AsyncIterator[AIOKafkaConsumer]:
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
        yield consumer
    finally:
        await consumer.stop()


async def _starts(
    consumer: AIOKafkaConsumer, places: list[TopicPartition], start: Start
) -> Mapping[TopicPartition, int]:
    firsts, ends = await consumer.beginning_offsets(places), await consumer.end_offsets(places)
    match start:
        case int():
            return {place: min(max(start, firsts[place]), ends[place]) for place in places}
        case datetime.datetime():
            found = await consumer.offsets_for_times(dict.fromkeys(places, int(start.timestamp() * 1000)))
            return {place: ends[place] if at is None else at.offset for place, at in found.items()}
    return firsts if start == BEGINNING else ends  # type: ignore[no-any-return]


def _in_time(record: Any) -> tuple[int, int]:
    return record.timestamp, record.offset


def _raw(topic: Topic, record: Any) -> Raw:
    return Raw(topic, record.partition, record.offset, record.key, record.value, dict(record.headers), record.timestamp)


async def _unsealed(told: Line, raw: Raw, keyring: Keyring, database: asyncpg.Connection, who: str) -> Line:
    """A changeset with its events, after a word on standard error about who opens it."""
    user = changesets.read(raw.value or b"").head.user
    keys = (await keyring.of(database, [user])).get(user)
    if keys is None or isinstance(keys, Destroyed):
        why = "the user was erased" if keys else "the user has no key"
        return msgspec.structs.replace(told, broken=f"stays sealed: {why}")
    place = f"{told.partition}@{told.offset}"
    typer.echo(f"tartan: {who} unseals changeset {told.detail['id']} at {place}, user {user}", err=True)
    try:
        return unsealed(told, raw.value or b"", keys)
    except Quarantine as error:
        return msgspec.structs.replace(told, broken=str(error))


def _say(told: Line, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(told).decode())
    else:
        kind = told.type.rpartition(".")[2]
        typer.echo(shown(told).replace(told.type, typer.style(told.type, fg=COLOURS.get(kind, "cyan")), 1))
    sys.stdout.flush()
