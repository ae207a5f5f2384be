"""What an operator does reaches the log, the fold and the scheduler: quarantine, redrive, decide; and what is refused."""  # noqa: E501

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import pytest
from click.testing import Result

from projections import app as projections
from projections.store.tables import SCHEMA
from sandbox.simulator.bank.bank import Item
from schemas.events import APPROVE_REMOVALS, DECISION_MADE, REJECT_REMOVALS
from schemas.log import gate
from tests.support.command_line import tartan, tartan_process
from tests.support.streams_world import Record, World, streams, world


class Installation(NamedTuple):
    """Streams and projections at work on one linked Item, and the operator's terminal."""

    made: World
    item: Item
    user: int
    environment: Mapping[str, str]

    async def tartan(self, *words: str) -> Result:
        """Run a command in a thread: the stages work on meanwhile."""
        return await asyncio.to_thread(tartan, *words, **self.environment)

    async def json(self, *words: str, exit_code: int = 0) -> Any:
        """The last line of a command's output."""
        result = await self.tartan(*words, "--json")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.output.splitlines()[-1])

    async def rows(self) -> int:
        """Transactions that readers see."""
        return int(await self.made.pool.fetchval("SELECT count(*) FROM reads.transactions WHERE removed_at IS NULL"))

    async def shown(self, count: int) -> None:
        """Wait until readers see so many."""

        async def there() -> bool:
            return await self.rows() == count

        await self.made.until(there, what=f"{count} transactions are shown")

    async def withheld(self) -> None:
        """Wait until projections have set something aside."""

        async def there() -> bool:
            return bool(await self.made.pool.fetchval(f"SELECT count(*) FROM {SCHEMA}.withheld"))

        await self.made.until(there, what="something is withheld")

    async def synced(self) -> int:
        """Wait until the Item's whole truth is shown; gives how many transactions that is."""
        await self.made.settled(self.item)
        held = await self.made.assert_true(self.item)
        await self.shown(len(held.transactions))
        return len(held.transactions)

    async def change(self) -> None:
        """Let the bank change something, and tell of it."""
        self.made.bank.step(self.item.item_id, changes=5)
        await self.made.webhook(self.item)

    async def free_records(self) -> list[Record]:
        return [record for record in await self.made.records() if record.head.kind == gate.FREE]


def environment_of(made: World) -> dict[str, str]:
    """The settings of an operator's terminal."""
    settings = made.settings
    return {
        "TARTAN_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "TARTAN_OPERATOR": "grace",
        "TARTAN_KAFKA_ADDRESS": settings.kafka_address,
        "TARTAN_TOPIC_PREFIX": settings.topic_prefix,
        "TARTAN_PARTITIONS": str(settings.partitions),
        "COLUMNS": "200",
        "TARTAN_KEY_ENCRYPTION_KEY": base64.b64encode(settings.master_key()).decode(),
    }


@pytest.fixture
async def installed(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[Installation]:
    async with world(kafka_address, topic_prefix, database) as made:
        item = made.bank.create_item("ada", transactions=30)
        async with streams(made), projections.stage(made.settings):
            user = await made.register(item)
            yield Installation(made, item, user, environment_of(made))


async def test_a_quarantined_item_is_left_alone_until_its_redrive_and_misses_nothing(installed: Installation) -> None:
    item_id = installed.item.item_id
    await installed.synced()

    would = await installed.json("items", "quarantine", item_id, "--reason", "a look at its bank", "--dry-run")
    quarantined = await installed.json("items", "quarantine", item_id, "--reason", "a look at its bank")
    passes = len(await installed.made.attempts(installed.item))
    await installed.change()
    told = (await installed.json("items", "redrive", item_id, "--dry-run"))["items"]
    queue = await installed.json("queue")
    assert (would["outcome"], quarantined["outcome"]) == ("would_be_quarantined", "is_quarantined")
    assert (told[0]["outcome"], told[0]["reasons"]) == ("would_be_redriven", ["operator: a look at its bank"])
    assert [(row["item_id"], row["state"]) for row in queue["listed"]] == [(item_id, "quarantined")]
    assert await installed.free_records() == []
    assert len(await installed.made.attempts(installed.item)) == passes

    done = (await installed.json("items", "redrive", item_id))["items"]
    again = await installed.tartan("items", "redrive", item_id)

    assert done[0]["outcome"] == "done"
    assert (again.exit_code, "nothing to redrive" in again.output) == (0, True)
    await installed.synced()
    [record] = await installed.free_records()
    assert (record.head.type, record.head.item_id, record.head.cause.by) == (gate.REDRIVE, item_id, "grace")
    assert (record.events, record.offset) == ([], done[0]["offset"])


async def test_what_was_withheld_is_applied_by_a_redrive_of_its_dead_letter(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    async with world(kafka_address, topic_prefix, database) as made, streams(made):
        item = made.bank.create_item("ada", transactions=30)
        installed = Installation(made, item, await made.register(item), environment_of(made))
        await made.settled(item)
        letter = await set_aside(made, item)
        async with projections.stage(made.settings):
            await installed.withheld()

            listed = (await installed.json("dead-letters", "list"))["dead_letters"]
            shown = await installed.json("dead-letters", "show", str(letter), "--original")
            kept = await installed.tartan("dead-letters", "purge", "--before", "2999-01-01")
            rows = await installed.rows()
            done = (await installed.json("dead-letters", "redrive", str(letter)))["items"]
            again = (await installed.json("dead-letters", "redrive", "--item", item.item_id))["items"]

            assert [(row["number"], row["item_id"], row["is_quarantined"]) for row in listed] == [
                (letter, item.item_id, True)
            ]
            assert (shown["reason"], base64.b64decode(shown["value"])) == ("Boom", b"\x00\xff")
            assert ("0 dead letters" in kept.output, rows) == (True, 0)
            assert (done[0]["outcome"], done[0]["withheld"]) == ("done", 1)
            assert again[0]["outcome"] == "nothing_to_redrive"
            assert await installed.synced() >= 30
            assert (await installed.json("dead-letters", "list", "--open"))["dead_letters"] == []
            assert (await installed.json("dead-letters", "purge", "--before", "2999-01-01"))["purged"] == [letter]


async def set_aside(made: World, item: Item) -> int:
    """Quarantine an Item at its first sync, as projections that cannot fold it do; gives the number of the dead letter."""  # noqa: E501
    [first, *_] = [record for record in await made.records() if record.head.type == gate.SYNC]
    await made.pool.execute(
        """INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader)
           VALUES ($1, $2, $3, 'Boom', 'projections')""",
        item.item_id,
        first.offset,
        first.partition,
    )
    number = await made.pool.fetchval(
        """INSERT INTO tartan.dead_letters (stage, topic, partition, source_offset, item_id, key, value, reason,
               code_version)
           VALUES ('projections', 'changesets', $2, $3, $1, '1', '\\x00ff', 'Boom', '1') RETURNING dead_letter""",
        item.item_id,
        first.partition,
        first.offset,
    )
    return int(number)


async def missing(installed: Installation, count: int) -> str:
    """Let transactions wait for a decision, as the fold leaves them; gives the changeset's id."""
    pool, item_id = installed.made.pool, installed.item.item_id
    changeset, offset = await pool.fetchrow(
        "SELECT id, source_offset FROM reads.changesets WHERE item_id = $1 ORDER BY source_offset DESC LIMIT 1", item_id
    )
    await pool.execute(
        f"""UPDATE {SCHEMA}.transactions SET missing_since_offset = $1 WHERE own_id IN (
            SELECT own_id FROM {SCHEMA}.transactions WHERE removed_at IS NULL ORDER BY own_id LIMIT $2)""",
        offset,
        count,
    )
    await pool.execute(f"UPDATE {SCHEMA}.items SET missing_rows = $1, missing_changeset_id = $2", count, changeset)
    return str(changeset.hex())


@pytest.mark.parametrize(("command", "decision"), [("approve", APPROVE_REMOVALS), ("reject", REJECT_REMOVALS)])
async def test_a_decision_removes_or_keeps_what_a_restated_history_lacks(
    installed: Installation, command: str, decision: str
) -> None:
    item_id = installed.item.item_id
    count = await installed.synced()
    changeset = await missing(installed, 12)

    would = await installed.json("items", command, item_id, "--dry-run")
    listed = await installed.tartan("items", command, item_id, "--dry-run")
    untouched = await installed.rows()
    done = await installed.json("items", command, item_id)
    again = await installed.json("items", command, item_id)
    told_again = await installed.tartan("items", command, item_id)

    assert (would["outcome"], would["transactions"], untouched) == ("would_be_decided", 12, count)
    assert len({row["id"] for row in would["removals"]}) == 12
    assert all(row["transaction_id"] in listed.output for row in would["removals"])
    assert (done["outcome"], done["changeset"]) == ("done", changeset)
    assert await installed.rows() == (count - 12 if command == "approve" else count)
    [record] = await installed.free_records()
    [(kind, said)] = record.events
    assert (record.head.type, kind, said.subject, said.decision, said.by) == (
        gate.DECISION,
        DECISION_MADE,
        changeset,
        decision,
        "grace",
    )
    assert record.head.counts == {DECISION_MADE: 1}
    assert (again["outcome"], again["transactions"]) == ("nothing_to_decide", 0)
    assert "has no removals that wait for a decision" in told_again.output
    assert len(await installed.free_records()) == 1


async def test_without_readers_a_record_is_appended_and_the_command_says_that_nobody_read_it(
    kafka_address: str, topic_prefix: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.operators.operator_commands.READ_S_MAX", 0.5)
    async with world(kafka_address, topic_prefix, database) as made:
        item = made.bank.create_item("ada", transactions=1)
        user = await made.register(item)
        installed = Installation(made, item, user, environment_of(made))
        await installed.tartan("items", "quarantine", item.item_id, "--reason", "r")

        result = await installed.tartan("items", "redrive", item.item_id)

        assert result.exit_code == 1
        assert "not read within" in result.output
        assert len(await installed.free_records()) == 1
        await made.pool.execute("UPDATE tartan.user_keys SET state = 'destroyed', wrapped = NULL")
        refused = await installed.tartan("items", "redrive", item.item_id)
        assert (refused.exit_code, "was erased" in str(refused.exception)) == (1, True)
        assert len(await made.pool.fetch("SELECT FROM tartan.quarantines WHERE redrive_offset IS NULL")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("items", "show", "nobody"), "there is no item nobody"),
        (("items", "quarantine", "nobody", "--reason", "r"), "there is no item nobody"),
        (("items", "redrive", "nobody"), "there is no item nobody"),
        (("items", "approve", "nobody"), "there is no item nobody"),
        (("items", "reject", "nobody", "--dry-run"), "there is no item nobody"),
        (("dead-letters", "show", "7"), "there is no dead letter 7"),
        (("dead-letters", "redrive", "7"), "there is no dead letter 7"),
        (("dead-letters", "purge", "--number", "7"), "there is no dead letter 7"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_1(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", database)

    ended = tartan_process(monkeypatch, capsys, *words)

    assert ended.code == 1
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_a_program_reads_what_went_wrong_as_the_last_line(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", database)

    ended = tartan_process(monkeypatch, capsys, "items", "show", "nobody", "--json")

    assert ended.code == 1
    assert "there is no item nobody" in json.loads(ended.out.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dead-letters", "redrive"), "give numbers of letters, or --item, or --all"),
        (("dead-letters", "redrive", "1", "--all"), "give numbers of letters, or --item, or --all"),
        (("dead-letters", "purge"), "give --before or --number"),
        (("items", "list", "--only", "tired"), "--only is one of quarantined, stopped, failing, withheld"),
        (("items", "list", "--limit", "0"), "--limit"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_asked(words: tuple[str, ...], said: str) -> None:
    result = tartan(*words, TARTAN_POSTGRES_DSN="postgresql://127.0.0.1:1/none")

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
