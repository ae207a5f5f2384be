"""Requests for balances of now: their values, what they cost, and which of them share one."""

import asyncio
import datetime
from http import HTTPStatus
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.handlers.balances.balance_client import BalanceQuery
from gateway.handlers.balances.balances import ReportedBalances, SharedCall
from gateway.http.parameters import read_all
from gateway.http.problems import Problem
from gateway.routes import ROUTES
from runtime.settings import Settings
from runtime.settings_syntax import Price

[ROUTE] = [route for route in ROUTES if route.operation == "read_balances"]
MORNING = datetime.datetime(2026, 9, 21, 8, tzinfo=datetime.UTC)


def read(body: bytes) -> dict[str, Any]:
    return read_all(ROUTE.parameters, path={"item_id": "i"}, query=[], headers={}, body=body)


def test_a_body_may_be_left_out_and_names_accounts_and_an_age_otherwise() -> None:
    assert (read(b"")["account_ids"], read(b"{}")["min_last_updated_datetime"]) == (None, None)

    values = read(b'{"account_ids": ["a", "b"], "min_last_updated_datetime": "2026-09-21T10:00:00+02:00"}')

    assert (values["account_ids"], values["min_last_updated_datetime"]) == (["a", "b"], MORNING)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"account_ids": []}', "account_ids"),
        (b'{"account_ids": "a"}', "account_ids"),
        (b'{"account_ids": [1]}', "account_ids"),
        (b'{"account_ids": ["a\\n"]}', "account_ids"),
        (b'{"min_last_updated_datetime": "2026-01-01"}', "min_last_updated_datetime"),
        (b'{"min_last_updated_datetime": "2026-01-01T08:00:00"}', "min_last_updated_datetime"),
        (b'{"accounts": ["a"]}', "accounts"),
        (b"[]", "body"),
    ],
)
def test_a_wrong_value_is_named(body: bytes, field: str) -> None:
    with pytest.raises(Problem) as problem:
        read(body)

    assert problem.value.status is HTTPStatus.BAD_REQUEST
    assert [fault.field for fault in problem.value.faults] == [field]


@pytest.mark.parametrize(
    ("mine", "theirs", "shared"),
    [
        (BalanceQuery(), BalanceQuery(), True),
        (BalanceQuery(), BalanceQuery(frozenset({"a"})), True),
        (BalanceQuery(frozenset({"a", "b"})), BalanceQuery(frozenset({"b"})), True),
        (BalanceQuery(frozenset({"a"})), BalanceQuery(), False),
        (BalanceQuery(frozenset({"a"})), BalanceQuery(frozenset({"a", "b"})), False),
        (BalanceQuery(), BalanceQuery(oldest=MORNING), False),
        (BalanceQuery(oldest=MORNING), BalanceQuery(frozenset({"a"}), oldest=MORNING), True),
    ],
)
async def test_a_request_is_shared_by_those_who_want_no_more_than_it_brings(
    mine: BalanceQuery, theirs: BalanceQuery, shared: bool
) -> None:
    told: asyncio.Future[ReportedBalances] = asyncio.Future()

    assert SharedCall(mine, told).covers(theirs) is shared  # type: ignore[arg-type]


def test_a_price_is_an_amount_and_a_currency() -> None:
    assert Settings(balance_price="0.10 USD").price() == Price("0.10", "USD")
    assert Settings().price() is None
    for text in ("0.10", "USD", "-1 USD", "0,10 USD", "0.10 ABC", "1e3 USD", "0.10 usd"):
        with pytest.raises(ValidationError):
            Settings(balance_price=text)
