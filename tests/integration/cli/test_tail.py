"""What `tartan tail` prints of each topic, for whom, and what it does not open without the right to."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from click.testing import Result

from runtime.kafka.clients import Outgoing, partition_of
from schemas.encoding import codec
from schemas.errors import Halt
from schemas.log.records import DeadLetter, Webhook
from schemas.topics import CHANGESETS, DEAD_LETTERS, TRANSACTIONS, WEBHOOKS, Topic, full_name
from tests.integration.cli.test_operator import environment_of
from tests.integration.projections.test_stage import PARTITIONS, World, projecting, world  # noqa: F401
from tests.support.command_line import tartan
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

TO_THE_END = ("--no-follow", "--json")


async def tail(world: World, *words: str, environment: Mapping[str, str] | None = None) -> Result:
    given = environment_of(world) if environment is None else environment
    return await asyncio.to_thread(tartan, "tail", *words, **given)


async def lines(world: World, *words: str) -> list[dict[str, Any]]:
    result = await tail(world, *words, *TO_THE_END)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]


async def put(world: World, topic: Topic, value: bytes, *, key: bytes) -> None:
    await world.appender.append(full_name(topic, world.settings.topic_prefix), Outgoing(key, value))


@pytest.fixture
async def told(world: World) -> World:
    """Users 1 and 2 with events on every topic."""
    log = Log()
    for user in (1, 2):
        log.link(f"item{user}", user, *balance(account()))
        log.sync(f"item{user}", *added(transaction("P", "12.5", name="Tea\x1b[2J\nHouse")), user=user)
        log.sync(f"item{user}", *modified(transaction("P", "13")), user=user)
        log.sync(f"item{user}", *removed("P"), user=user)
    async with projecting(world):
        await world.append(log)
        await world.until_projected(8)
    return world


async def test_public_events_are_told_in_words_with_whose_they_are_and_where(told: World) -> None:
    events = await lines(told, "transactions", "--user", "t:u1")

    assert [(event["type"], event["user"], event["item"], event["position"]) for event in events] == [
        ("transaction.added", ["t", "u1"], "item1", "1.0"),
        ("transaction.modified", ["t", "u1"], "item1", "2.0"),
        ("transaction.removed", ["t", "u1"], "item1", "3.0"),
    ]
    assert [event["detail"]["money"] for event in events] == ["12.50 USD", "13.00 USD", "13.00 USD"]
    assert events[1]["detail"]["changed"] == ["amount", "name"]
    assert [event["type"] for event in await lines(told, "items", "--user", "2")] == ["item.linked"]
    assert [event["detail"]["account"] for event in await lines(told, "balances", "--item", "item2")] == ["checking"]


async def test_a_line_for_a_person_cannot_move_the_cursor(told: World) -> None:
    [line] = [
        line
        for line in (await tail(told, "transactions", "--no-follow", "--item", "item1")).output.splitlines()
        if "transaction.added" in line
    ]

    assert "12.50 USD Tea\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}House" in line
    assert "account=checking" in line
    assert "position=1.0" in line
    assert "\x1b" not in line


async def test_pushes_and_changesets_are_told_and_what_is_sealed_stays_so(told: World) -> None:
    assert [event["type"] for event in await lines(told, "push", "--user", "t:u1")] == [
        "item.linked",
        "balance.updated",
        "transaction.added",
        "transaction.modified",
        "transaction.removed",
    ]

    changesets = await lines(told, "changesets", "--item", "item2")

    assert [event["type"] for event in changesets] == ["link", "sync", "sync", "sync"]
    assert changesets[0]["user_number"] == 2
    assert "events" not in changesets[1]
    assert "Tea" not in json.dumps(changesets)


async def test_changesets_are_unsealed_with_the_key_alone_and_it_is_told_by_whom(told: World) -> None:
    unsealed = await tail(told, "changesets", "--unseal", "--user", "t:u1", "--by", "grace", *TO_THE_END)
    keyless = {name: value for name, value in environment_of(told).items() if "ENCRYPTION" not in name}
    refused = await tail(told, "changesets", "--unseal", "--no-follow", environment=keyless)

    opened = [json.loads(line) for line in unsealed.stdout.splitlines()]
    assert [event["type"] for each in opened for event in each["events"]] == [
        "item.linked",
        "balance.reported",
        "transaction.added",
        "transaction.modified",
        "transaction.removed",
    ]
    assert opened[1]["events"][0]["data"]["amount"] == "12.5"
    said = unsealed.stderr.splitlines()
    assert len(said) == 4
    assert all("grace unseals changeset" in line and "user 1" in line for line in said)
    assert isinstance(refused.exception, Halt)
    assert "TARTAN_KEY_ENCRYPTION_KEY" in str(refused.exception)
    assert (await tail(told, "transactions", "--unseal")).exit_code == 2


async def test_webhooks_and_dead_letters_are_told(world: World) -> None:
    body = b'{"webhook_type": "TRANSACTIONS", "webhook_code": "SYNC_UPDATES_AVAILABLE", "item_id": "item1"}'
    forged = Webhook(1_760_000_000_000_000, body, b"?" * 32, "a.b.c", "{}")
    letter = DeadLetter(
        "projections", "changesets", 0, 7, "item1", "does not open", 1, "0.1", 1_760_000_000_000_000, b"1", b"sealed"
    )
    await put(world, WEBHOOKS, codec.encode(forged), key=b"item1")
    await put(world, DEAD_LETTERS, codec.encode(letter), key=b"1")

    [webhook] = await lines(world, "webhooks", "--item", "item1")
    [dead] = await lines(world, "dead-letters", "--user", "t:u1")

    assert (webhook["type"], webhook["item"]) == ("TRANSACTIONS.SYNC_UPDATES_AVAILABLE", "item1")
    assert webhook["detail"]["verified"].startswith("no: ")
    assert webhook["time"] == "2025-10-09T08:53:20.000Z"
    assert (dead["type"], dead["detail"]["reason"], dead["detail"]["source"]) == (
        "projections",
        "does not open",
        "changesets 0@7",
    )


@pytest.mark.parametrize("topic", [TRANSACTIONS, CHANGESETS, WEBHOOKS, DEAD_LETTERS])
async def test_a_record_that_is_none_is_told_as_broken(world: World, topic: Topic) -> None:
    await put(world, topic, b"\x00\x00\x00\x00\x10 nothing of the kind", key=b"1")

    [line] = await lines(world, topic.name)

    assert (line["type"], line["broken"].startswith("25 bytes: ")) == ("broken", True)


async def test_it_begins_where_it_is_told_to_and_stops_after_so_many(told: World) -> None:
    number = str(partition_of(b"1", PARTITIONS))
    everything = await lines(told, "push", "--partition", number)

    assert await lines(told, "push", "--partition", number, "--from", "2", "--limit", "2") == everything[2:4]
    assert await lines(told, "push", "--from", "end") == []
    assert await lines(told, "push", "--partition", number, "--from", "2020-01-01T00:00") == everything
    assert await lines(told, "push", "--from", "2100-01-01") == []
    followed = await tail(told, "push", "--from", "beginning", "--limit", "3", "--json")
    assert len(followed.output.splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "is no topic"),
        (("push", "--item", "i"), "names no Item"),
        (("push", "--from", "yesterday"), "is not beginning, end"),
        (("push", "--user", "ada"), "is not tenant:id"),
    ],
)
async def test_a_wrong_word_is_said_to_be_one(world: World, words: tuple[str, ...], said: str) -> None:
    result = await tail(world, *words)

    assert (result.exit_code, said in " ".join(result.output.replace("│", " ").split())) == (2, True)
