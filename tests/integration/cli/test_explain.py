"""`tartan explain` on a real Postgres."""

import json
import re
from collections.abc import AsyncIterator

import pytest
from click.testing import Result

from projections.read import resolve_id
from sandbox.infra.postgres import Postgres
from schemas.ids import own_id
from schemas.log.records import Cause
from tests.integration.cli.test_operator import Installation, installed  # noqa: F401
from tests.integration.projections.test_store import Database, fresh, template  # noqa: F401
from tests.support.command_line import tartan
from tests.support.projections_log import START_US, Log, account, added, balance, transaction

OWN = own_id("P", salt=b"A").hex()


@pytest.fixture
async def projected(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    log = Log()
    log.link("A", 1)
    log.sync("A", *added(transaction("P", "40", pending=True)), cause=Cause("schedule"))
    log.sync(
        "A",
        *added(transaction("T", "48", pending_transaction_id="P")),
        cause=Cause("webhook", 3, 17, START_US, ["request-1", "request-2"]),
    )
    log.edit("A", own_id("P", salt=b"A"), "T", name="[red]Tea[/nothing]", notes="one\ntwo", tags=["a"], hidden=True)
    log.edit("A", own_id("P", salt=b"A"), "T", notes="")
    async with fresh(postgres, "told_why") as made:
        await made.project(log.records)
        connection = await made.connection()
        await connection.execute("INSERT INTO tartan.users (user_number, tenant, user_id) VALUES (1, 'shop', 'ada')")
        yield made


@pytest.fixture
async def linked_again(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    log = Log()
    for item_id, account_id in (("OLD", "old"), ("NEW", "new")):
        log.link(item_id, 1)
        log.sync(item_id, *balance(account(account_id)), *added(transaction(f"T{item_id}", account_id=account_id)))
    async with fresh(postgres, "linked_again") as made:
        await made.project(log.records)
        yield made


def run(projected: Database, *words: str) -> Result:
    return tartan("explain", *words, TARTAN_POSTGRES_DSN=projected.dsn, COLUMNS=None)


def test_a_transaction_is_explained_for_people(projected: Database) -> None:
    result = run(projected, "T")

    assert result.exit_code == 0
    for said in (
        f"transaction {OWN}: 48 USD on 2026-03-01",
        "user ada of tenant shop",
        "amount: 40 → 48",
        "3: 48 USD posted from bank checking to category FOOD_AND_DRINK",
        "reverses 1",
        "webhook 3:17, received 2025-10-09T08:53:20.000000Z",
        "Plaid's requests request-1, request-2",
        "tick (schedule)",
        "[red]Tea[/nothing]",
        'tags: ["a"]',
        "hidden: true",
        'notes: one⏎two → ""',
    ):
        assert said in result.output


def test_programs_get_one_document(projected: Database) -> None:
    result = run(projected, f"{OWN}.3", "--json")

    told = json.loads(result.output.splitlines()[-1])
    assert (told["kind"], told["changeset"], told["user"]) == (
        "ledger_row",
        "0:2",
        {"tenant": "shop", "user_id": "ada"},
    )
    assert told["changesets"]["0:2"]["origin"]["webhook"] == {
        "partition": 3,
        "offset": 17,
        "received_at": "2025-10-09T08:53:20.000000Z",
    }


@pytest.mark.parametrize("name", [OWN, f"{OWN}.1", "0:2", "0:2.0", "A", "P"])
def test_everything_has_a_form_for_people(projected: Database, name: str) -> None:
    result = run(projected, name)

    assert result.exit_code == 0
    assert "causes" in result.output
    assert "0:2 sync of Item A" in result.output or name.endswith(".1")


def test_an_account_names_those_it_is_one_with_and_its_ledger_names_each_row_in_full(linked_again: Database) -> None:
    assert "continued by new of Item NEW" in run(linked_again, "old").output
    told = run(linked_again, "new").output
    assert "continues old of Item OLD" in told
    [ledger] = set(re.findall(r"([0-9a-f]{32}) posted: -10 USD", told))

    row = re.search(r"([0-9a-f]{32}\.\d+): 10 USD posted from bank new", run(linked_again, ledger).output)

    assert row
    assert run(linked_again, row[1]).output.startswith(f"ledger row {row[1]}: 10 USD posted from bank new")


def test_an_unknown_id_says_what_was_looked_for(projected: Database) -> None:
    result = run(projected, "nobody", "--json")

    assert result.exit_code == 2
    assert "nothing is named nobody" in result.stderr
    assert "Plaid's id of a transaction" in json.loads(result.stdout.splitlines()[-1])["error"]


async def test_what_the_stages_did_ends_at_plaids_words_and_those_who_asked(installed: Installation) -> None:
    await installed.synced()
    for _ in range(3):
        await installed.change()
        await installed.synced()
    rows = await installed.made.pool.fetch("SELECT own_id, number, changeset FROM reads.ledger_transfers")
    async with installed.made.pool.acquire() as connection, connection.transaction(isolation="repeatable_read"):
        told = [await resolve_id.explain_id(connection, f"{row['own_id'].hex()}.{row['number']}") for row in rows]
    behind = [one["changesets"][one["changeset"]] for one in told if one is not None]

    assert len(behind) == len(rows) > 30
    assert {"webhook", "user"} <= {one["origin"]["kind"] for one in behind} <= {"webhook", "tick", "user"}
    assert all(one["request_ids"] for one in behind)
    heard = [one["origin"]["webhook"] for one in behind if one["origin"]["kind"] == "webhook"]
    assert all(one["received_at"] and one["offset"] >= 0 for one in heard)
    newest = max(rows, key=lambda row: row["changeset"])
    shown = await installed.tartan("explain", f"{newest['own_id'].hex()}.{newest['number']}")
    assert "Plaid's requests" in shown.output
