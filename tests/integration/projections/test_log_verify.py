"""The log's invariants on a real Kafka and Postgres: a sound world violates none, and each kind of damage is named."""

import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from projections.publish import kafka_records
from projections.store import writer
from projections.verify import verify_log
from projections.verify.verify_log import CHECKSUMS, HEADS, PARENTS, POSITIONS, ROWS, SETTLED, WHOLE
from projections.verify.verify_tables import Finding
from projections.verify.verify_topics import invariant_name
from runtime.archive import store as archive_store
from runtime.archive.seal import archive
from runtime.kafka import topics
from runtime.kafka.clients import Appender, Outgoing
from runtime.kafka.continuity import checksum
from runtime.settings import Settings
from sandbox.infra.postgres import Postgres
from schemas.contract import subjects
from schemas.log import gate
from schemas.topics import BALANCES, CHANGESETS, HEADER_POSITION, ITEMS, PUBLIC, TRANSACTIONS, WEBHOOKS
from streams.follow_heads import FollowHeads
from streams.storage.consumer_transactions import following
from tests.conftest import TEMPLATE, finish
from tests.support.projections_database import Database
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

PARTITIONS = 2
NO_KEY = 1_001
SOUND = "sound_database_of_log_verify"
STORY = "story_of_log_verify"

Contents = dict[tuple[str, int], list[Outgoing]]
"""Records by a topic's short name and partition."""


def story() -> tuple[Log, list[Any]]:
    """Two partitions, a stale worker, an unlinked Item, one that was quarantined; and what only comes once it has a key."""  # noqa: E501
    log = Log(partitions=PARTITIONS)
    log.link("item", 1, *balance(account("checking", "100"), account("card", "20", type="credit")))
    log.sync("item", *added(transaction("a", "12"), transaction("b", "5", pending=True), transaction("c", "1")))
    log.link("other", 2)
    head = log.heads["item"]
    log.sync("item", *modified(transaction("a", "13")), *removed("c"), *balance(account("checking", "88")))
    accepted = log.heads["item"]
    stale = log.sync("item", *added(transaction("late")), parent=head)
    log.sync("item", *added(transaction("later")))  # of the same worker, on its own record
    assert stale.partition == 1
    log.heads["item"] = accepted
    log.sync("other", *added(transaction("x"), transaction("y")), user=2)
    log.append("other", [], user=2, type=gate.UNLINK)
    log.sync("item", *added(transaction("d")))
    log.link("quarantined", NO_KEY)
    log.sync("quarantined", *added(transaction("p"), transaction("q")), user=NO_KEY)
    before = list(log.records)
    log.redrive("quarantined", NO_KEY)
    log.sync("quarantined", *modified(transaction("q", "7")), user=NO_KEY)
    return log, before


class Sound(NamedTuple):
    """A world in which all agrees: what the topics hold, their prefix, and the story's log, to be told on."""

    settings: Settings
    contents: Contents
    log: Log


@pytest.fixture(scope="module")
def sound(postgres: Postgres, template_dsn: str, kafka_address: str) -> Any:
    assert template_dsn
    prefix = f"test-{uuid.uuid4().hex[:12]}."
    given = Settings(kafka_address=kafka_address, topic_prefix=prefix, partitions=PARTITIONS)

    async def make() -> Sound:
        log, before = story()
        dsn = await postgres.create_database(STORY, template=TEMPLATE)
        database = Database(dsn)
        await writer.ensure_positions(await database.connection(), PARTITIONS)
        await database.project(before, range(0, len(before), 3))
        database.ownership.restored = True
        await database.project(log.records[len(before) :])
        contents = logged(log)
        for committed in database.publisher.committed:
            for lane, outgoing in kafka_records.build_records(committed.changesets).items():
                contents.setdefault((lane.topic.name, lane.partition), []).extend(outgoing)
        await follow(dsn, log, contents)
        await database.session.close()
        await postgres.create_database(SOUND, template=STORY)
        await postgres.drop_database(STORY)
        await produce(given, contents)
        return Sound(given, contents, log)

    yield finish(make())
    finish(postgres.drop_database(SOUND))


def logged(log: Log) -> Contents:
    contents: Contents = {(WEBHOOKS.name, 0): [Outgoing(b"item", b"a webhook")]}
    for record in log.records:
        contents.setdefault((CHANGESETS.name, record.partition), []).append(Outgoing(record.key, record.value))
    return contents


async def follow(dsn: str, log: Log, contents: Contents) -> None:
    """What streams and publisher keep of it."""
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    follower = FollowHeads(None, partial(following, pool), on_commit=lambda: None, on_erased=lambda _: None)  # type: ignore[arg-type]
    await follower.process(log.records)
    await pool.execute(
        "INSERT INTO tartan.positions (reader, partition, position, last_checksum) VALUES ('mark_due', 0, 1, $1)",
        checksum(b"a webhook"),
    )
    for number in range(PARTITIONS):
        end = len(contents[CHANGESETS.name, number])
        await pool.execute(
            "INSERT INTO tartan.published_checkpoints (partition, published) VALUES ($1, $2)", number, end
        )
    await pool.close()


async def produce(given: Settings, contents: Contents) -> None:
    await topics.apply(given)
    appender = Appender(given, client="test")
    await appender.start()
    for (name, number), outgoing in contents.items():
        await appender.append_many(f"{given.topic_prefix}{name}", number, outgoing)
    await appender.stop()


@pytest.fixture
async def tables(postgres: Postgres, sound: Sound) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a copy of the sound database, on which no trigger fires."""
    assert sound
    name = f"test_{uuid.uuid4().hex[:12]}"
    dsn = await postgres.create_database(name, template=SOUND)
    connection = await asyncpg.connect(dsn, server_settings={"search_path": "projection"})
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()
    await postgres.drop_database(name)


def wrong(found: dict[str, Finding]) -> dict[str, list[str]]:
    return {name: one.examples for name, one in found.items() if one.violations}


async def test_a_sound_world_has_no_violation_and_everything_was_looked_at(
    sound: Sound, tables: asyncpg.Connection
) -> None:
    found = await verify_log.verify_log(sound.settings, tables, is_settled=True)

    assert wrong(found) == {}
    assert {name for name, one in found.items() if not one.checked} == set()
    assert len(found) == 11
    assert found[PARENTS].checked == 1
    assert found[HEADS].checked == found[verify_log.ITEMS].checked == 3


SETS_OF_DAMAGES: dict[str, dict[str, str]] = {
    "all moved on": {
        HEADS: "UPDATE tartan.heads SET head_offset = head_offset + 1 WHERE item_id = 'item'",
        verify_log.ITEMS: r"UPDATE items SET head = '\x01' WHERE item_id = 'item'",
        POSITIONS: "UPDATE tartan.published_checkpoints SET published = 50 WHERE partition = 0",
        CHECKSUMS: "UPDATE tartan.positions SET last_checksum = '' WHERE reader = 'mark_due'",
        invariant_name(
            TRANSACTIONS
        ): "UPDATE changesets c SET events = o.events FROM changesets o WHERE c.partition = 1"
        " AND c.source_offset = 1 AND o.partition = 0 AND o.source_offset = 1",
    },
    "something is gone": {
        HEADS: "DELETE FROM tartan.heads WHERE item_id = 'other'",
        verify_log.ITEMS: "UPDATE items SET unlinked = true WHERE item_id = 'item'",
        SETTLED: "UPDATE tartan.positions SET position = 0 WHERE reader = 'mark_due'",
        ROWS: "DELETE FROM changesets WHERE partition = 0 AND source_offset = 2",
        invariant_name(TRANSACTIONS): "UPDATE changesets SET net_events = 0 WHERE partition = 1 AND source_offset = 1",
    },
    "something is another's": {
        HEADS: "UPDATE tartan.heads SET item_id = 'nobody' WHERE item_id = 'other'",
        CHECKSUMS: "UPDATE positions SET last_checksum = sha256('x')",
        POSITIONS: "UPDATE tartan.positions SET position = 50 WHERE reader = 'mark_due'",
        ROWS: r"UPDATE changesets SET id = '\x01' WHERE partition = 0 AND source_offset = 2",
    },
    "the projections are above the log": {
        POSITIONS: "UPDATE positions SET position = position + 1 WHERE partition = 1",
        ROWS: "UPDATE changesets SET source_offset = 70 WHERE partition = 1 AND source_offset = 7",
    },
    "the follower is above the log": {
        POSITIONS: "UPDATE tartan.positions SET position = 50 WHERE reader = 'follow_heads' AND partition = 1"
    },
}


@pytest.mark.parametrize("damages", SETS_OF_DAMAGES)
async def test_damage_in_the_tables_is_found_by_name(sound: Sound, tables: asyncpg.Connection, damages: str) -> None:
    for statement in SETS_OF_DAMAGES[damages].values():
        assert not (await tables.execute(statement)).endswith(" 0"), statement

    found = wrong(await verify_log.verify_log(sound.settings, tables, is_settled=True))

    assert SETS_OF_DAMAGES[damages].keys() <= found.keys(), found
    assert all(found.values())


@pytest.mark.parametrize("numbered_by", ["us", "a registry"])
async def test_of_events_of_which_only_the_digest_is_kept_the_digest_is_compared(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str, numbered_by: str
) -> None:
    given, contents, own_ids = sound.settings, sound.contents, subjects.own_ids()
    if numbered_by == "a registry":
        given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
        prefixes = {schema: max(own_ids) - schema for schema in own_ids}  # other numbers, of which some are ours too
        public = {topic.name for topic in PUBLIC}
        contents = {
            place: [renumbered(one, prefixes) for one in some] if place[0] in public else some
            for place, some in contents.items()
        }
        await produce(given, contents)
        await tables.executemany(
            "INSERT INTO tartan.registry_ids VALUES ('registry', 'subject', $1, $2, now())", list(prefixes.items())
        )
        other = zip(prefixes, [*list(prefixes.values())[1:], next(iter(prefixes.values()))], strict=True)
        await tables.executemany(
            "INSERT INTO tartan.registry_ids VALUES ('one before it', 'subject', $1, $2, now())", list(other)
        )
    await tables.execute("UPDATE changesets SET events = NULL")

    found = await verify_log.verify_log(given, tables)
    assert wrong(found) == {}
    assert all(found[invariant_name(topic)].checked for topic in PUBLIC)

    await tables.execute("UPDATE changesets SET digest = sha256('x') WHERE partition = 1 AND source_offset = 1")
    assert invariant_name(TRANSACTIONS) in wrong(await verify_log.verify_log(given, tables))


def renumbered(one: Outgoing, ids: dict[int, int]) -> Outgoing:
    assert one.value is not None
    schema = int.from_bytes(one.value[1:5], "big")
    return one._replace(value=b"\0" + ids[schema].to_bytes(4, "big") + one.value[5:])


def header(position: str) -> tuple[tuple[str, bytes], ...]:
    return ((HEADER_POSITION, position.encode()), ("ce_type", b"transaction.added"))


def changed(one: Outgoing) -> Outgoing:
    assert one.value is not None
    return one._replace(value=one.value[:-1] + b"?")


def stray(position: str) -> Outgoing:
    return Outgoing(b"k", b"\0\0\0\0\1x", header(position))


Change = Callable[[list[Outgoing]], list[Outgoing]]
EVENTS, MONEY, LINKS, LOG = TRANSACTIONS.name, BALANCES.name, ITEMS.name, CHANGESETS.name
SETS_OF_CHANGES: dict[str, dict[tuple[str, int], Change]] = {
    "missing": {
        (EVENTS, 1): lambda all_of: all_of[:-1],
        (EVENTS, 0): lambda all_of: all_of[1:],
        (MONEY, 1): lambda all_of: all_of[:1] + all_of[2:],
        (LINKS, 0): lambda _: [],
    },
    "altered": {
        (EVENTS, 1): lambda all_of: [changed(all_of[0]), *all_of[1:]],
        (EVENTS, 0): lambda all_of: [all_of[1], all_of[0], *all_of[2:]],
        (MONEY, 1): lambda all_of: [all_of[0]._replace(key=b"another"), *all_of[1:]],
        (LINKS, 0): lambda all_of: [all_of[0]._replace(headers=[*all_of[0].headers[:-1], *header("0.7")]), *all_of[1:]],
    },
    "strays": {
        (EVENTS, 1): lambda all_of: [*all_of, Outgoing(b"k", b"\0\0\0\0\1hello")],  # without a position
        (EVENTS, 0): lambda all_of: [stray("99.0"), *all_of],  # readers take it, and drop all else
        (MONEY, 1): lambda all_of: [*all_of, stray("0.0")],  # readers drop it
        (LINKS, 0): lambda all_of: [*all_of, stray("2.9")],  # of a changeset that has fewer
    },
}


@pytest.mark.parametrize("changes", SETS_OF_CHANGES)
async def test_damage_in_public_topics_is_found_in_its_partition(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str, changes: str
) -> None:
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
    altered = {place: change(sound.contents[place]) for place, change in SETS_OF_CHANGES[changes].items()}
    await produce(given, {**sound.contents, **altered})

    found = wrong(await verify_log.verify_log(given, tables))

    assert found.keys() == {invariant_name(topic) for topic in PUBLIC}
    places = {" ".join(example.split(":")[0].split()) for one in found.values() for example in one}
    assert places == {f"{name} {number}" for name, number in altered}


async def test_what_a_publisher_that_was_killed_has_sent_again_is_no_violation(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str
) -> None:
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
    once = sound.contents[EVENTS, 1]
    await produce(given, {**sound.contents, (EVENTS, 1): [*once[:3], *once[1:], *once[-2:]]})

    assert wrong(await verify_log.verify_log(given, tables)) == {}


async def test_a_head_that_cannot_be_read_is_named_and_nothing_is_concluded_from_half_a_chain(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str
) -> None:
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
    log = sound.contents[LOG, 1]
    await produce(given, {**sound.contents, (LOG, 1): [*log[:2], Outgoing(b"1", b"none"), *log[3:]]})

    found = wrong(await verify_log.verify_log(given, tables))

    assert found.keys() == {WHOLE}
    assert "does not begin with a head" in found[WHOLE][0]


async def test_a_chained_record_whose_parent_nobody_has_seen_is_found(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str
) -> None:
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
    log, _ = story()
    crafted = log.sync("item", *added(transaction("z")), parent=b"\x01" * 32)
    changesets = [*sound.contents[CHANGESETS.name, 1], Outgoing(crafted.key, crafted.value)]
    await produce(given, {**sound.contents, (CHANGESETS.name, 1): changesets})
    for table in ("positions", "tartan.positions"):
        await tables.execute(
            f"UPDATE {table} SET position = position + 1, last_checksum = $1 WHERE partition = 1"
            + (" AND reader = 'follow_heads'" if "." in table else ""),
            checksum(crafted.value),
        )

    found = wrong(await verify_log.verify_log(given, tables))

    place = len(changesets) - 1
    assert found == {PARENTS: [f"changeset 1.{place} of item item: its parent 010101010101 is not in the log"]}


async def test_what_retention_has_deleted_is_no_violation_of_public_topics_and_one_of_the_log(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str
) -> None:
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
    await produce(given, sound.contents)

    await delete(given, {TRANSACTIONS.name: 3, BALANCES.name: 1})
    assert wrong(await verify_log.verify_log(given, tables)) == {}

    await delete(given, {CHANGESETS.name: 2})
    assert set(wrong(await verify_log.verify_log(given, tables))) == {WHOLE}


async def test_a_log_of_which_the_archive_has_the_beginning_is_whole_and_a_changed_segment_is_named(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str, tmp_path: Path
) -> None:
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix, "archive_url": tmp_path.as_uri()})
    await produce(given, sound.contents)
    await archive(given, archive_store.connect(given), sealed_before_ms=None, on_sealed=lambda _: None)
    await delete(given, {CHANGESETS.name: 3})

    found = await verify_log.verify_log(given, tables)
    assert wrong(found) == {}
    assert found[verify_log.ARCHIVE].checked

    [segment] = (tmp_path / f"{topic_prefix}{CHANGESETS.name}" / "00001").glob("0*.segment")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    found = await verify_log.verify_log(given, tables)
    assert set(wrong(found)) == {WHOLE, verify_log.ARCHIVE}
    assert f"{topic_prefix}{CHANGESETS.name} 1, offsets 0" in wrong(found)[WHOLE][0]


async def delete(given: Settings, below: dict[str, int]) -> None:
    """Delete the first records of partition 1, as a topic's retention does."""
    admin = AIOKafkaAdminClient(bootstrap_servers=given.kafka_address)
    await admin.start()
    places = {TopicPartition(f"{given.topic_prefix}{name}", 1): at for name, at in below.items()}
    await admin.delete_records({place: RecordsToDelete(at) for place, at in places.items()})
    await admin.close()


async def test_nothing_is_wrong_with_what_happens_while_it_looks(
    sound: Sound, tables: asyncpg.Connection, topic_prefix: str
) -> None:
    """A reader behind the log, events ahead of the checkpoint, some published, some not: that is a system at work."""
    given = sound.settings.model_copy(update={"topic_prefix": topic_prefix})
    log, _ = story()
    more = [log.sync("item", *added(transaction("new"))) for _ in range(2)]
    contents = {**sound.contents}
    contents[CHANGESETS.name, 1] = contents[CHANGESETS.name, 1] + [Outgoing(one.key, one.value) for one in more]
    place = len(sound.contents[CHANGESETS.name, 1])
    ahead = Outgoing(b"k", b"\0\0\0\0\1x", header(f"{place}.0"))  # of the changeset that is folded just now
    contents[TRANSACTIONS.name, 1] = [*contents[TRANSACTIONS.name, 1], ahead, ahead]
    contents[BALANCES.name, 1] = contents[BALANCES.name, 1][:1]
    contents[ITEMS.name, 0] = []
    await tables.execute("UPDATE tartan.published_checkpoints SET published = 0")
    await produce(given, contents)

    assert wrong(await verify_log.verify_log(given, tables)) == {}
    assert SETTLED in wrong(await verify_log.verify_log(given, tables, is_settled=True))
