"""Balances of now: what is asked for and made of answers, the same as plaid-python's own models make of them."""

import datetime as dt
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import urllib3
from plaid import Configuration
from plaid.model.accounts_get_response import AccountsGetResponse
from plaid.model_utils import validate_and_convert_types
from pydantic import SecretStr

from runtime.plaid import client
from runtime.plaid.client import OLDEST_BALANCE, Plaid, PlaidRefused
from runtime.settings import Settings
from sandbox.simulator.api.server import Running, running
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control import failure_modes
from sandbox.simulator.options import Options

DATED = "ins_900004"
NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
async def simulator() -> AsyncIterator[Running]:
    async with running(Options(rate_limits="off", novelty=1.0)) as made:
        yield made


@pytest.fixture
async def plaid(simulator: Running) -> AsyncIterator[Plaid]:
    options = simulator.plaid.options
    made = Plaid(
        Settings(
            plaid_url=simulator.url,
            plaid_client_id=options.client_id,
            plaid_secret=SecretStr(options.secret),
            plaid_timeout_s=2.0,
        )
    )
    yield made
    await made.close()


def item_of(simulator: Running, **given: Any) -> Item:
    return simulator.plaid.create_item("user", transactions=5, **given)


async def test_balances_are_exact_and_those_that_plaids_own_models_read(
    simulator: Running, plaid: Plaid, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = item_of(simulator)
    account_id = next(iter(item.accounts))
    failure_modes.drift(item, account_id, Decimal("0.0000001"))
    bodies: list[bytes] = []
    read = client.plaid_answers.accounts
    monkeypatch.setattr(client.plaid_answers, "accounts", lambda body: bodies.append(body) or read(body))

    answer = await plaid.balances(item.access_token)

    said = {account.account_id: account for account in answer.accounts}
    assert set(said) == set(item.accounts)
    assert Decimal(said[account_id].current or "") == item.accounts[account_id].current
    modelled = validate_and_convert_types(
        json.loads(bodies[0]), (AccountsGetResponse,), ["received"], True, True, Configuration()
    )
    assert modelled.request_id == answer.request_id
    for account in modelled.accounts:
        mine = said[account.account_id]
        assert (account.balances.current, account.balances.available, account.balances.limit) == tuple(
            None if amount is None else float(amount) for amount in (mine.current, mine.available, mine.limit)
        )
        assert account.balances.iso_currency_code == mine.iso_currency_code


async def test_only_the_accounts_that_are_named_are_asked_for(simulator: Running, plaid: Plaid) -> None:
    item = item_of(simulator)
    account_id = next(iter(item.accounts))

    answer = await plaid.balances(item.access_token, account_ids=[account_id])
    with pytest.raises(PlaidRefused) as refused:
        await plaid.balances(item.access_token, account_ids=["another's"])

    assert [account.account_id for account in answer.accounts] == [account_id]
    assert (refused.value.error_code, refused.value.field) == ("INVALID_ACCOUNT_ID", None)


async def test_a_refusal_names_the_field_that_a_bank_needs(simulator: Running, plaid: Plaid) -> None:
    item = item_of(simulator, institution_id=DATED)

    with pytest.raises(PlaidRefused) as needed:
        await plaid.balances(item.access_token)
    answer = await plaid.balances(item.access_token, oldest=NOW - dt.timedelta(days=1))
    with pytest.raises(PlaidRefused) as too_old:
        await plaid.balances(item.access_token, oldest=NOW + dt.timedelta(days=1))

    assert (needed.value.error_code, needed.value.field) == ("INVALID_FIELD", OLDEST_BALANCE)
    assert all(account.last_updated_datetime for account in answer.accounts)
    assert too_old.value.error_code == "LAST_UPDATED_DATETIME_OUT_OF_RANGE"


async def test_a_bank_has_a_minute_even_where_other_requests_have_seconds(
    simulator: Running, plaid: Plaid, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = item_of(simulator)
    timeouts: list[urllib3.Timeout] = []
    request = urllib3.PoolManager.request

    def watched(self: urllib3.PoolManager, *given: Any, timeout: urllib3.Timeout, **named: Any) -> Any:
        timeouts.append(timeout)
        return request(self, *given, timeout=timeout, **named)

    monkeypatch.setattr(urllib3.PoolManager, "request", watched)
    await plaid.accounts(item.access_token)
    await plaid.balances(item.access_token)

    assert [timeout.read_timeout for timeout in timeouts] == [2.0, 60.0]
