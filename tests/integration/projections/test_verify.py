"""`verify`: a sound database has no violation, and each kind of damage is found under its name."""

import random
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest

from projections.verify import invariants, verify_tables
from sandbox.infra.postgres import Postgres
from tests.conftest import finish
from tests.support.projections_complete import complete_story
from tests.support.projections_database import fresh
from tests.support.projections_kin import ACTS
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
SOUND = "sound_database_of_verify"


def story() -> Log:
    """Everything that the tables can say: pending and posted, corrections, removals, openings, several currencies."""
    log = Log()
    log.link("item", 1, *balance(account("checking", "100"), account("card", "20", type="credit")))
    log.sync(
        "item",
        *added(
            transaction("a", "12.34"),
            transaction("b", "-5", account_id="card"),
            transaction("p", "40", pending=True),
            transaction("y", "700", iso_currency_code="JPY"),
            transaction("gone", "1"),
        ),
        history_status=COMPLETE,
    )
    log.sync(
        "item",
        *removed("gone", "p"),
        *added(transaction("q", "48", pending_transaction_id="p")),
        *modified(transaction("a", "13", category_primary="TRAVEL")),
        *balance(account("checking", "88")),
    )
    log.link("other", 2)
    log.sync("other", *added(transaction("z", "3")), user=2)
    return log


@pytest.fixture(scope="module")
def sound(postgres: Postgres, template_dsn: str) -> str:
    """The name of a projected database that nobody is connected to."""

    async def make() -> None:
        async with fresh(postgres, "verified") as database:
            await database.project(story().records)
            await database.session.close()
            await postgres.drop_database(SOUND)
            await postgres.create_database(SOUND, template="verified")

    assert template_dsn
    finish(make())
    return SOUND


@pytest.fixture
async def damaged(postgres: Postgres, sound: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a copy, on which no trigger fires."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(await postgres.create_database(name, template=sound))
    await connection.execute("SET session_replication_role = replica; SET search_path = projection")
    yield connection
    await connection.close()
    await postgres.drop_database(name)


async def test_a_sound_database_has_no_violation_and_everything_was_looked_at(damaged: asyncpg.Connection) -> None:
    found = verify_tables.totals(await verify_tables.verify(damaged))

    assert found["violations"] == 0, found
    nothing_of = {
        "links_point_to_transactions",
        "held_transactions_wait_for_an_open_review",
        "open_reviews_leave_a_transaction_counted",
    }
    assert {name for name, one in found["invariants"].items() if not one["checked"]} == nothing_of
    assert found["checked"] == sum(one["checked"] for one in found["invariants"].values())
    assert len(found["invariants"]) == len(invariants.INVARIANTS) + 5


LAST = "own_id = (SELECT own_id FROM transactions WHERE transaction_id = 'a')"
OPENING = "effective = '-infinity'"
DAMAGES = {
    "ledger_sums_to_zero": "UPDATE ledger_balances SET debits = debits + 1 WHERE layer = 'posted'"
    " AND account = (SELECT min(account) FROM ledger_balances)",
    "balances_equal_their_transfers": "UPDATE ledger_balances SET debits = debits + 1, credits = credits + 1",
    "transfers_join_accounts_of_one_user_and_currency": "UPDATE ledger_accounts SET user_number = 2"
    " WHERE kind = 'equity'",
    "transfers_are_numbered_without_gap": f"DELETE FROM ledger_transfers WHERE {LAST} AND number = 1",
    "shown_transactions_are_in_the_ledger_with_their_amounts": f"UPDATE ledger_transfers SET amount = amount + 1 WHERE {LAST} AND reverses IS NULL AND number > 1",  # noqa: E501
    "removed_and_held_transactions_are_not_in_the_ledger": "UPDATE transactions SET active_transfers = 1 WHERE transaction_id = 'gone'",  # noqa: E501
    "reversals_equal_what_they_reverse": "UPDATE ledger_transfers SET amount = amount + 1 WHERE reverses IS NOT NULL",
    "versions_follow_each_other": "DELETE FROM transaction_versions",
    "account_versions_are_numbered_without_gap": "DELETE FROM account_versions WHERE version = 1",
    "links_point_to_transactions": r"INSERT INTO transaction_matches VALUES ('item', 'old', '\x00', 1, 'rule', 90, '{}', 1, now())",  # noqa: E501
    "held_transactions_wait_for_an_open_review": r"UPDATE transactions SET review = '\x01' WHERE transaction_id = 'a'",
    "open_reviews_leave_a_transaction_counted": r"INSERT INTO reviews (id, user_number, item_id, own_id, candidates, reason, state, changeset, known_at) SELECT '\x01', 1, 'item', own_id, '[]', 'likely', 'open', 1, now() FROM transactions WHERE transaction_id = 'gone'",  # noqa: E501
    "no_plaid_id_belongs_to_two_shown_transactions": "UPDATE transactions SET transaction_id = 'a' WHERE transaction_id = 'y'",  # noqa: E501
    "changesets_lie_below_their_positions": "UPDATE positions SET position = 1",
    "rows_name_changesets_that_are_there": "DELETE FROM changesets WHERE source_offset = 1",
    verify_tables.COLUMNS: "UPDATE transactions SET amount_value = amount_value + 1 WHERE transaction_id = 'a'",
    verify_tables.POSTINGS: f"""UPDATE ledger_transfers SET debit = (
        SELECT min(id) FROM ledger_accounts WHERE kind = 'category' AND currency = 'USD' AND id <> debit)
        WHERE {LAST} AND reverses IS NULL AND number > 1""",
    verify_tables.OPENINGS: f"UPDATE ledger_transfers SET effective = '2026-01-01' WHERE {OPENING}",
    verify_tables.CHAINS: "UPDATE transaction_versions SET payload = t.payload FROM transactions t"
    " WHERE transaction_versions.transaction_id = 'p' AND t.transaction_id = 'a'",
    verify_tables.EVENTS: "UPDATE changesets SET digest = sha256('x') WHERE source_offset = 2",
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_found_by_name(damaged: asyncpg.Connection, name: str) -> None:
    assert not (await damaged.execute(DAMAGES[name])).endswith(" 0")

    found = verify_tables.totals(await verify_tables.verify(damaged))

    assert found["invariants"][name]["violations"] > 0
    assert found["invariants"][name]["examples"]
    assert found["violations"] >= found["invariants"][name]["violations"]


async def test_every_invariant_has_its_damage(damaged: asyncpg.Connection) -> None:
    assert set(await verify_tables.verify(damaged)) == set(DAMAGES)


@pytest.mark.parametrize(
    "damage",
    [
        f"DELETE FROM ledger_transfers WHERE {OPENING}",
        "UPDATE accounts SET opened = NULL WHERE account_id = 'card'",
        "INSERT INTO ledger_transfers SELECT own_id || '\\x01', number, user_number, debit, credit, amount, currency,"
        f" layer, reverses, effective, partition, changeset, known_at FROM ledger_transfers WHERE {OPENING}",
    ],
    ids=["missing", "not noted", "of nobody"],
)
async def test_an_opening_that_is_not_as_its_account_says_is_found(damaged: asyncpg.Connection, damage: str) -> None:
    await damaged.execute(damage)

    assert (await verify_tables.verify(damaged))[verify_tables.OPENINGS].violations > 0


async def test_words_that_cannot_be_read_are_violations_and_not_the_end(damaged: asyncpg.Connection) -> None:
    await damaged.execute("UPDATE transactions SET payload = '\\x00'; UPDATE changesets SET events = '\\x00'")

    found = await verify_tables.verify(damaged)

    assert found[verify_tables.COLUMNS].violations == found[verify_tables.COLUMNS].checked
    assert found[verify_tables.EVENTS].violations == found[verify_tables.EVENTS].checked


@pytest.mark.usefixtures("template_dsn")
@pytest.mark.parametrize("seed", range(4))
async def test_stories_of_one_account_under_several_items_violate_nothing(postgres: Postgres, seed: int) -> None:
    """No false alarm where rows move between Items, wait for reviews, are edited, and accounts go on from others."""
    chosen = random.Random(seed)
    steps = [(chosen.choice(ACTS), chosen.randrange(4), chosen.randrange(3)) for _ in range(60)]
    bank = complete_story(steps)

    async with fresh(postgres, f"story_{seed}") as database:
        await database.project(bank.records, range(0, len(bank.records), 7))
        found = verify_tables.totals(await verify_tables.verify(await database.connection()))

    assert found["violations"] == 0, found
    assert found["invariants"]["links_point_to_transactions"]["checked"]
