"""Looking back through the API: as of a time, every version, and why."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from projections.read.queries import to_json
from schemas.ids import own_id
from schemas.log.records import Cause
from schemas.times import from_micros
from tests.support.gateway_world import Api, assert_shape, serving_api
from tests.support.projections_database import Database
from tests.support.projections_log import START_US, Log, account, added, balance, modified, removed, transaction

OWN = own_id("P", salt=b"A").hex()


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    """Behind the API: a purchase that was pending, posted, and got another name; others that came and went."""
    log = Log()
    log.link("A", 1, *balance(account(current="100")))
    others = (transaction("Ta", date="2026-02-01"), transaction("Tb", date="2026-02-01"))
    log.sync("A", *added(transaction("P", "40", pending=True), *others))
    log.sync(
        "A",
        *added(transaction("Q", "48", pending_transaction_id="P", date="2026-03-03")),
        *removed("Ta"),
        *balance(account(current="52")),
        cause=Cause("webhook", 3, 17, START_US, ["request-1"]),
    )
    log.sync("A", *modified(transaction("Q", "48", pending_transaction_id="P", date="2026-03-03", name="Shop")))
    projected = Database(database)
    try:
        async with serving_api(database) as made:
            await made.pool.execute(
                "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES (1, 'a', 'ada'), (2, 'a', 'eve')"
            )
            await made.pool.execute("INSERT INTO reads.positions (partition, position) VALUES (0, 0)")
            await projected.project(log.records)
            yield made
    finally:
        await projected.session.close()


def at(number: int) -> str:
    """When the record with this number was known."""
    return str(to_json({"at": from_micros(START_US + (number + 1) * 1_000_000)})["at"])


async def ask(api: Api, path: str, **values: str) -> tuple[int, Any]:
    query = "&".join(f"{name}={value}" for name, value in values.items())
    return await api.ask("GET", f"/v1/{path}" + (f"?{query}" if query else ""))


async def test_transactions_and_accounts_as_of_a_time(api: Api) -> None:
    _, before = await ask(api, "users/ada/transactions/as-of", as_of=at(0))
    _, then = await ask(api, "users/ada/transactions/as-of", as_of=at(1))
    _, effective = await ask(api, "users/ada/transactions/as-of", as_of=at(3), effective_at="2026-03-02")
    _, accounts = await ask(api, "users/ada/accounts/as-of", as_of=at(1))

    assert before == {"transactions": [], "next_cursor": None}
    newest, *others = then["transactions"]
    assert (newest["id"], newest["amount"], newest["pending"], newest["version"]) == (OWN, "40", True, 1)
    assert [row["transaction_id"] for row in others] == sorted(
        ("Ta", "Tb"), key=lambda name: own_id(name, salt=b"A"), reverse=True
    )
    assert [row["transaction_id"] for row in effective["transactions"]] == ["Tb"]
    assert_shape(then["transactions"][0], "TransactionAsOf")
    [known] = accounts["accounts"]
    assert (known["current"], known["version"]) == ("100", 1)
    assert_shape(known, "AccountAsOf")


async def test_pages_as_of_a_time_go_on_where_the_last_one_ended(api: Api) -> None:
    path, rows, cursor = "users/ada/transactions/as-of", [], {}
    for _ in range(3):
        _, page = await ask(api, path, as_of=at(1), limit="1", **cursor)
        rows += page["transactions"]
        cursor = {"cursor": page["next_cursor"]}
    status, refused = await ask(api, path, as_of=at(2), limit="1", cursor=cursor["cursor"] or "none")

    _, whole = await ask(api, path, as_of=at(1))
    assert (rows, page["next_cursor"]) == (whole["transactions"], None)
    assert (status, refused["faults"][0]["field"]) == (400, "cursor")


async def test_every_version_with_what_changed_and_why(api: Api) -> None:
    _, first = await ask(api, f"transactions/{OWN}/history", limit="2")
    _, second = await ask(api, f"transactions/{OWN}/history", limit="2", cursor=first["next_cursor"])

    newest, posted, pending = [*first["versions"], *second["versions"]]
    assert second["next_cursor"] is None
    assert newest["changed"] == [{"field": "name", "before": "Coffee Shop", "after": "Shop"}]
    assert {one["field"] for one in posted["changed"]} == {
        "transaction_id",
        "amount",
        "pending",
        "pending_transaction_id",
        "date",
    }
    assert (pending["event"], pending["changed"], posted["event"]) == ("transaction.added", [], "transaction.modified")
    assert posted["changeset"]["origin"] == {
        "kind": "webhook",
        "cause": "webhook",
        "by": None,
        "webhook": {"partition": 3, "offset": 17, "received_at": "2025-10-09T08:53:20.000000Z"},
    }
    assert (posted["changeset"]["request_ids"], posted["known_at"]) == (["request-1"], at(2))
    assert_shape(posted, "Version")
    assert_shape(posted["changeset"], "Changeset")


async def test_an_explanation_has_the_whole_chain(api: Api) -> None:
    _, told = await ask(api, f"transactions/{OWN}/explanation")

    assert_shape(told, "Explanation")
    assert [(one["amount"], one["changeset"]) for one in told["transfers"]] == [
        ("40", "0:1"),
        ("40", "0:2"),
        ("48", "0:2"),
    ]
    assert told["changesets"].keys() == {"0:1", "0:2", "0:3"}
    assert told["user"] == {"tenant": "a", "user_id": "ada"}


@pytest.mark.parametrize("path", [f"transactions/{OWN}/history", f"transactions/{OWN}/explanation"])
async def test_another_tenants_transaction_is_none(api: Api, path: str) -> None:
    status, _ = await api.ask("GET", f"/v1/{path}", key="key-b")

    assert status == 404


@pytest.mark.parametrize("wrong", ["2026-01-01", "2026-01-01T00:00:00", "yesterday", "0001-01-01T00:00:00%2B14:00"])
async def test_a_time_without_an_offset_is_refused_by_name(api: Api, wrong: str) -> None:
    status, problem = await ask(api, "users/ada/transactions/as-of", as_of=wrong)

    assert (status, problem["faults"][0]["field"]) == (400, "as_of")


async def test_what_waits_for_a_review_is_shown_to_who_asks(api: Api) -> None:
    await api.pool.execute("UPDATE reads.transactions SET review = $2 WHERE own_id = $1", bytes.fromhex(OWN), b"r" * 16)

    _, listed = await ask(api, "users/ada/transactions")
    _, asked = await ask(api, "users/ada/transactions", in_review="true")
    _, named = await ask(api, f"transactions/{OWN}")

    assert [row["transaction_id"] for row in listed["transactions"]] == ["Tb"]
    assert [row["id"] for row in asked["transactions"]] == [OWN]
    assert named["status"] == "in_review"
