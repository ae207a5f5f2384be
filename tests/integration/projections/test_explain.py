"""Every row of the ledger, every version and every balance explains itself back to a webhook, a tick or a person."""

import io
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from rich.console import Console

from cli.operate.explain import tree
from projections.events import public_events
from projections.read import explain, history, lineage, queries, resolve_id
from projections.read.lineage import LogOffset
from projections.store.rows import decompress
from runtime.plaid import models
from sandbox.infra.postgres import Postgres
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Item
from tests.integration.projections.test_store import Database, fresh, template  # noqa: F401
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction
from tests.support.projections_ties import cause_of, tied_history

T = own_id("T", salt=b"A")
ODD_PAGE = b"""{"added": [{"transaction_id": "T", "account_id": "checking", "amount": 5, "date": "2026-03-01",
 "pending": null, "check_number": 17}],
 "modified": null, "removed": null, "accounts": null, "next_cursor": "c", "has_more": false}"""


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    async with fresh(postgres, "explained") as made:
        yield made


async def explained(database: Database, name: str) -> Any:
    connection = await database.connection()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await resolve_id.explain_id(connection, name)


async def versions_of(connection: asyncpg.Connection, own: bytes, limit: int) -> list[queries.Row]:
    rows: list[queries.Row] = []
    before = None
    while True:
        page = await history.versions(connection, 1, own, limit=limit, before=before)
        assert page is not None
        assert len(page.rows) <= limit
        rows += page.rows
        if page.next is None:
            return rows
        before = page.next


@pytest.mark.parametrize("seed", range(3))
async def test_history_tells_what_the_events_told(database: Database, seed: int) -> None:
    rng = random.Random(seed)
    log = tied_history(rng).log
    await database.project(log.records, [rng.randrange(len(log.records)) for _ in range(5)])
    connection = await database.connection()
    told: dict[bytes, dict[int, tuple[str, list[str], int]]] = {}
    for row in await connection.fetch("SELECT source_offset, events FROM reads.changesets ORDER BY source_offset"):
        for event in public_events.decode_block(decompress(row["events"])):
            if event.type.startswith("transaction."):
                said = public_events.read_transaction(event.data)
                told.setdefault(event.entity, {})[said.version] = (event.type, said.changed, row["source_offset"])
    changed_once = {name for versions in told.values() for _, changed, _ in versions.values() for name in changed}
    assert {"amount", "pending", "user_fields.category", "user_fields.notes"} <= changed_once

    for own, expected in told.items():
        found = await versions_of(connection, own, limit=rng.choice((1, 2, 100)))

        assert [row["version"] for row in found] == list(range(len(expected), 0, -1))
        for row in found:
            kind, changed, offset = expected[row["version"]]
            assert (row["event"], row["changeset"]["offset"]) == (kind, offset)
            if kind == events.TRANSACTION_MODIFIED:
                assert [one["field"] for one in row["changed"]] == changed
                assert all(one["before"] != one["after"] for one in row["changed"])
            assert row["changeset"]["request_ids"] == cause_of(offset, row["changeset"]["type"]).request_ids
        newest = await queries.transaction(connection, 1, own)
        assert newest is not None
        assert {name: found[0][name] for name in newest.keys() - {"enriched_at"}} == {
            name: value for name, value in newest.items() if name != "enriched_at"
        }


async def test_one_of_108_modified_has_one_more_version_with_the_field_that_changed(database: Database) -> None:
    log = Log()
    log.link("A")
    names = [f"T{number}" for number in range(108)]
    log.sync("A", *added(*(transaction(name) for name in names)))
    log.sync("A", *modified(*(transaction(name, name="Shop" if name == "T7" else "Coffee Shop") for name in names)))
    await database.project(log.records)
    connection = await database.connection()

    found = {name: await versions_of(connection, own_id(name, salt=b"A"), 10) for name in names}

    assert {name: len(versions) for name, versions in found.items() if len(versions) != 1} == {"T7": 2}
    assert found["T7"][0]["changed"] == [{"field": "name", "before": "Coffee Shop", "after": "Shop"}]
    assert found["T7"][0]["changeset"]["said"] == {events.TRANSACTION_MODIFIED: 108}
    assert found["T7"][0]["changeset"]["net_events"] == 1


async def test_every_ledger_row_ends_at_a_webhook_a_tick_or_a_person(database: Database) -> None:
    log = tied_history(random.Random(4)).log
    await database.project(log.records)
    connection = await database.connection()
    rows = await connection.fetch("SELECT own_id, number, changeset FROM reads.ledger_transfers")
    assert len(rows) > 100
    kinds, abouts = set(), set()

    for row in rows:
        told = await explained(database, f"{row['own_id'].hex()}.{row['number']}")

        assert (told["kind"], told["is"]["number"]) == ("ledger_row", row["number"])
        behind = told["changesets"][told["changeset"]]
        cause = cause_of(row["changeset"], behind["type"])
        assert (behind["origin"]["cause"], behind["origin"]["by"]) == (cause.kind, cause.by)
        assert behind["request_ids"] == cause.request_ids
        webhook = behind["origin"].get("webhook")
        assert (None if webhook is None else webhook["offset"]) == cause.webhook_offset
        kinds.add(behind["origin"]["kind"])
        about = told["about"]
        named_places = {one["changeset"] for one in about["transfers"] + about.get("versions", [])}
        assert named_places <= about["changesets"].keys()
        abouts.add(about["kind"])
    assert (kinds, abouts) == ({lineage.WEBHOOK, lineage.TICK, lineage.USER}, {"transaction", "opening"})


async def test_each_kind_of_id_is_found(database: Database) -> None:
    log = Log()
    log.link("A", 1, *balance(account()))
    log.sync("A", *added(transaction("P", "40", pending=True), transaction("T")))
    log.sync("A", *added(transaction("Q", "48", pending_transaction_id="P")), *balance(account(current="52")))
    await database.project(log.records)
    connection = await database.connection()
    bank = await connection.fetchval("SELECT id FROM reads.ledger_accounts WHERE kind = 'bank'")
    own = own_id("P", salt=b"A").hex()

    told = {
        name: await explained(database, name)
        for name in (own, f"{own}.2", bank.hex(), log.heads["A"].hex(), "0:2", "0:2.0", "P", "Q", "checking", "A")
    }

    assert {name: one["kind"] for name, one in told.items()} == {
        own: "transaction",
        f"{own}.2": "ledger_row",
        bank.hex(): "ledger_account",
        log.heads["A"].hex(): "changeset",
        "0:2": "changeset",
        "0:2.0": "event",
        "P": "transaction",
        "Q": "transaction",
        "checking": "account",
        "A": "item",
    }
    assert told["P"] == told["Q"] == told[own] == told["0:2.0"]["about"]
    assert [(one["amount"], one["layer"], one["reverses"], one["changeset"]) for one in told[own]["transfers"]] == [
        ("40", "pending", None, "0:1"),
        ("40", "pending", 1, "0:2"),
        ("48", "posted", None, "0:2"),
    ]
    assert told["0:2"] == told[log.heads["A"].hex()]
    assert [one["current"] for one in told["checking"]["reports"]] == ["52", "100"]
    assert {one["balance"] for one in told["checking"]["balances"]} == {"-58", "0"}
    posted = [one["amount"] for one in told[bank.hex()]["transfers"] if one["layer"] == "posted"]
    assert sorted(posted) == ["10", "48"]
    assert {one["changeset"] for one in told["A"]["listed"]} == {"0:0", "0:1", "0:2"} == told["A"]["changesets"].keys()


@pytest.mark.parametrize("name", ["0:9", "0:1.7", "9:0", "ab" * 16, f"{T.hex()}.9", "nothing", "0" * 40])
async def test_what_nothing_is_named_is_not_found(database: Database, name: str) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    await database.project(log.records)

    assert await explained(database, name) is None


async def test_what_a_redrive_freed_is_explained_by_what_was_withheld(database: Database) -> None:
    log = Log()
    log.link("A")
    await database.project(log.records)
    connection = await database.connection()
    await connection.execute(
        "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader) "
        "VALUES ('A', 1, 0, 'an older code could not', 'projections')"
    )
    log.sync("A", *added(transaction("T")))
    log.sync("A", *modified(transaction("T", "12")))
    log.redrive("A")
    await database.project(log.records[1:])

    told = await explain.transaction(connection, 1, T)

    assert told is not None
    assert [one["changeset"] for one in told["transfers"]] == ["0:3"] * 3
    [redrive] = told["changesets"].values()
    assert (redrive["type"], [one["place"] for one in redrive["redrives"]]) == ("redrive", ["0:1", "0:2"])
    assert {one["origin"]["kind"] for one in redrive["redrives"]} == {"webhook"}
    assert {one["redriven_by"] for one in redrive["redrives"]} == {3}


async def test_a_rule_that_linked_two_ids_is_told_with_score_and_evidence(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *removed("T"), *added(transaction("U")))
    await database.project(log.records)

    told = await explained(database, "U")

    [link] = told["links"]
    assert told == await explained(database, "T")
    assert (told["is"]["id"], link["changeset"], link["transaction_id"]) == (T.hex(), "0:2", "U")
    assert (link["score"], bool(link["rule"]), bool(link["evidence"])) == (100, True, True)
    assert [one["event"] for one in told["versions"]] == [events.TRANSACTION_MODIFIED, events.TRANSACTION_ADDED]


async def test_repairs_of_the_banks_values_are_named(database: Database) -> None:
    log = Log()
    log.link("A")
    [row] = models.sync_page(ODD_PAGE).added
    log.sync("A", *added(row))
    await database.project(log.records)

    found = await explained(database, "T")

    assert found["repairs"] == {"pending": "null for false", "check_number": "number for text"}
    console = Console(width=200, file=io.StringIO())
    console.print(tree(found))
    assert "check_number: number for text" in console.file.getvalue()  # type: ignore[attr-defined]


async def test_a_review_is_told_with_what_it_holds_and_what_ended_it(database: Database) -> None:
    log = Log()
    for item_id, description in (("A", "BUS LINE 4"), ("B", "COFFEE 77")):
        linked = codec.encode(Item(item_id, "active", institution_id="ins_1", institution_name="Bank"))
        accounts = balance(account(f"of-{item_id}"))
        log.append(item_id, [(events.ITEM_LINKED, catalogue.ITEM, linked), *accounts], type=gate.LINK)
        row = transaction("T", account_id=f"of-{item_id}", original_description=description)
        log.sync(item_id, *added(row))
    await database.project(log.records)
    connection = await database.connection()
    number = await connection.fetchval("SELECT id FROM reads.reviews ORDER BY id LIMIT 1")
    opened = await explained(database, number.hex())
    log.decide("B", events.REJECT_REVIEW, number)
    await database.project(log.records[-1:])

    ended = await explained(database, number.hex())

    assert (opened["kind"], opened["is"]["state"], opened["is"]["changeset"]) == ("review", "open", "0:3")
    assert T.hex() in [one["own_id"] for one in opened["is"]["candidates"]]
    held = opened["about"]
    assert (held["is"]["status"], held["transfers"]) == ("in_review", [])
    assert ([one["event"] for one in held["versions"]], held["reviews"]) == ([None], opened["reviews"])
    assert (ended["is"]["state"], ended["is"]["decided"]) == ("rejected", "0:4")
    assert ended["changesets"].keys() == {"0:3", "0:4"}
    assert [one["event"] for one in ended["about"]["versions"]] == [events.TRANSACTION_ADDED]
    [counted] = ended["about"]["transfers"]
    assert counted["changeset"] == "0:4"


async def test_the_changesets_of_places_that_are_none_are_left_out(database: Database) -> None:
    log = Log()
    log.link("A")
    await database.project(log.records)

    found = await lineage.changesets(await database.connection(), [LogOffset(0, 0), LogOffset(0, 5), LogOffset(3, 0)])

    assert found.keys() == {"0:0"}
