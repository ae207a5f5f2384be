"""The simulator against plaid-python itself: its client, its response models, its request models."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import plaid
import pytest
from plaid.api import plaid_api
from plaid.configuration import Configuration
from plaid.model.accounts_balance_get_request import AccountsBalanceGetRequest
from plaid.model.accounts_balance_get_request_options import AccountsBalanceGetRequestOptions
from plaid.model.accounts_get_request import AccountsGetRequest
from plaid.model.country_code import CountryCode
from plaid.model.custom_sandbox_transaction import CustomSandboxTransaction
from plaid.model.item_access_token_invalidate_request import ItemAccessTokenInvalidateRequest
from plaid.model.item_get_request import ItemGetRequest
from plaid.model.item_public_token_create_request import ItemPublicTokenCreateRequest
from plaid.model.item_public_token_exchange_request import ItemPublicTokenExchangeRequest
from plaid.model.item_remove_request import ItemRemoveRequest
from plaid.model.item_webhook_update_request import ItemWebhookUpdateRequest
from plaid.model.link_token_create_request import LinkTokenCreateRequest
from plaid.model.link_token_create_request_user import LinkTokenCreateRequestUser
from plaid.model.personal_finance_category_version import PersonalFinanceCategoryVersion
from plaid.model.plaid_error import PlaidError
from plaid.model.products import Products
from plaid.model.sandbox_item_fire_webhook_request import SandboxItemFireWebhookRequest
from plaid.model.sandbox_item_reset_login_request import SandboxItemResetLoginRequest
from plaid.model.sandbox_public_token_create_request import SandboxPublicTokenCreateRequest
from plaid.model.sandbox_public_token_create_request_options import SandboxPublicTokenCreateRequestOptions
from plaid.model.sandbox_transactions_create_request import SandboxTransactionsCreateRequest
from plaid.model.transactions_refresh_request import TransactionsRefreshRequest
from plaid.model.transactions_sync_request import TransactionsSyncRequest
from plaid.model.transactions_sync_request_options import TransactionsSyncRequestOptions
from plaid.model.transactions_sync_response import TransactionsSyncResponse
from plaid.model.webhook_type import WebhookType
from plaid.model.webhook_verification_key_get_request import WebhookVerificationKeyGetRequest
from plaid.model_utils import validate_and_convert_types

from sandbox.simulator.api.plaid_errors import KINDS
from sandbox.simulator.api.server import Running, running
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.institutions import INSTITUTIONS
from sandbox.simulator.bank.truth import truth_of
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.options import Options

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
PRODUCTS = [Products("transactions")]


class Client:
    """plaid-python's own client, unchanged, with its check of types on; each call in a thread."""

    def __init__(self, simulator: Running) -> None:
        keys = {"clientId": "simulated-client", "secret": "simulated-secret"}
        self._client = plaid.ApiClient(Configuration(host=simulator.url, api_key=keys))
        self.api = plaid_api.PlaidApi(self._client)

    async def ask(self, name: str, request: Any) -> Any:
        return await asyncio.to_thread(getattr(self.api, name), request, _check_return_type=True)

    async def refused(self, name: str, request: Any) -> tuple[int, Any]:
        with pytest.raises(plaid.ApiException) as refusal:
            await self.ask(name, request)
        body = json.loads(refusal.value.body)
        validate_and_convert_types(
            body, (PlaidError,), ["error"], True, True, configuration=Configuration(discard_unknown_keys=False)
        )
        return refusal.value.status, body


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
async def simulator(clock: ManualClock) -> AsyncIterator[Running]:
    """A simulator with new fields and values in every row."""
    async with running(Options(novelty=1.0, rate_limits="off"), clock) as server:
        yield server


@pytest.fixture
def client(simulator: Running) -> Client:
    return Client(simulator)


def make(simulator: Running, **options: Any) -> Item:
    return simulator.plaid.create_item("ada", **{"transactions": 30, **options})


async def pull(client: Client, item: Item, *, cursor: str = "", count: int = 500) -> tuple[dict[str, Any], str]:
    """Read everything through plaid-python; give rows by id and the last cursor."""
    rows: dict[str, Any] = {}
    while True:
        page = await client.ask(
            "transactions_sync",
            TransactionsSyncRequest(
                access_token=item.access_token,
                cursor=cursor,
                count=count,
                options=TransactionsSyncRequestOptions(include_original_description=True),
            ),
        )
        assert isinstance(page, TransactionsSyncResponse)
        rows |= {row.transaction_id: row for row in (*page.added, *page.modified)}
        for gone in page.removed:
            rows.pop(gone.transaction_id, None)
        cursor = page.next_cursor
        if not page.has_more:
            return rows, cursor


@pytest.mark.parametrize("institution_id", [bank.institution_id for bank in INSTITUTIONS])
async def test_every_row_of_every_bank_is_a_transaction_to_plaid_python(
    simulator: Running, client: Client, institution_id: str
) -> None:
    item = make(simulator, institution_id=institution_id, transactions=60)
    for _ in range(40):
        simulator.plaid.step(item.item_id, changes=3)

    rows, _ = await pull(client, item, count=100)

    truth = {row["transaction_id"]: row for row in truth_of(item, version="v2")["transactions"]}
    assert set(rows) == set(truth)
    for transaction_id, row in rows.items():
        assert row.amount == float(truth[transaction_id]["amount"])
        assert row.date.isoformat() == truth[transaction_id]["date"]
        assert row.original_description == truth[transaction_id]["original_description"]
        assert row.sustainability is not None, "an unknown field was lost"


async def test_an_update_after_the_first_has_all_three_arrays(simulator: Running, client: Client) -> None:
    item = make(simulator, transactions=200)
    _, cursor = await pull(client, item)
    for _ in range(30):
        simulator.plaid.step(item.item_id, changes=5)

    page = await client.ask(
        "transactions_sync", TransactionsSyncRequest(access_token=item.access_token, cursor=cursor, count=500)
    )

    assert page.added
    assert page.modified
    assert page.removed
    assert page.transactions_update_status.value == "HISTORICAL_UPDATE_COMPLETE"
    assert all(row.original_description is None for row in page.added)


async def test_the_way_from_a_link_token_to_transactions(
    simulator: Running, client: Client, clock: ManualClock
) -> None:
    link = await client.ask(
        "link_token_create",
        LinkTokenCreateRequest(
            client_name="Tartan",
            language="en",
            country_codes=[CountryCode("US")],
            products=PRODUCTS,
            user=LinkTokenCreateRequestUser(client_user_id="ada"),
            webhook="http://tartan.example/webhooks",
        ),
    )
    item = simulator.plaid.complete_link(link.link_token, institution_id="ins_109508")
    token = simulator.plaid.public_token(item)

    exchanged = await client.ask("item_public_token_exchange", ItemPublicTokenExchangeRequest(public_token=token))
    assert (exchanged.item_id, exchanged.access_token) == (item.item_id, item.access_token)
    assert item.user == "ada"

    empty = await client.ask("transactions_sync", TransactionsSyncRequest(access_token=exchanged.access_token))
    assert (empty.next_cursor, empty.has_more, empty.added) == ("", False, [])
    assert empty.transactions_update_status.value == "NOT_READY"

    clock.advance(60)
    simulator.plaid.tasks.run_due()
    rows, _ = await pull(client, item)
    assert len(rows) == simulator.plaid.options.history_transactions


async def test_a_public_token_works_once_and_for_half_an_hour(
    simulator: Running, client: Client, clock: ManualClock
) -> None:
    item = make(simulator)
    made = await client.ask("item_create_public_token", ItemPublicTokenCreateRequest(access_token=item.access_token))
    assert made.expiration == START + dt.timedelta(minutes=30)
    exchange = ItemPublicTokenExchangeRequest(public_token=made.public_token)
    await client.ask("item_public_token_exchange", exchange)

    again = await client.refused("item_public_token_exchange", exchange)
    late = simulator.plaid.public_token(item)
    clock.advance(30 * 60)
    expired = await client.refused("item_public_token_exchange", ItemPublicTokenExchangeRequest(public_token=late))

    assert (again[0], again[1]["error_code"]) == (400, "INVALID_PUBLIC_TOKEN")
    assert expired[1]["error_message"].startswith("provided public token is expired")


async def test_the_sandbox_makes_a_public_token(simulator: Running, client: Client) -> None:
    made = await client.ask(
        "sandbox_public_token_create",
        SandboxPublicTokenCreateRequest(
            institution_id="ins_109508",
            initial_products=PRODUCTS,
            options=SandboxPublicTokenCreateRequestOptions(
                webhook="http://tartan.example/w", override_username="user_transactions_dynamic"
            ),
        ),
    )
    exchanged = await client.ask(
        "item_public_token_exchange", ItemPublicTokenExchangeRequest(public_token=made.public_token)
    )
    item = simulator.plaid.item(exchanged.item_id)

    assert item.user == "user_transactions_dynamic"
    assert item.webhook_url == "http://tartan.example/w"


async def test_a_custom_user_has_the_accounts_and_rows_that_were_written(simulator: Running, client: Client) -> None:
    today = START.date()
    written = {
        "override_accounts": [
            {
                "type": "depository",
                "subtype": "checking",
                "starting_balance": 1000.25,
                "currency": "CHF",
                "meta": {"name": "Konto"},
                "transactions": [
                    {
                        "date_transacted": str(today),
                        "date_posted": str(today),
                        "amount": 12.05,
                        "description": "MIGROS",
                    },
                    {
                        "date_transacted": str(today),
                        "date_posted": str(today + dt.timedelta(days=3)),
                        "amount": 7,
                        "description": "SBB",
                    },
                ],
            },
            {"type": "credit", "subtype": "credit card", "starting_balance": 10, "meta": {"limit": 500}},
        ]
    }
    options = SandboxPublicTokenCreateRequestOptions(
        override_username="user_custom", override_password=json.dumps(written)
    )
    made = await client.ask(
        "sandbox_public_token_create",
        SandboxPublicTokenCreateRequest(institution_id="ins_109508", initial_products=PRODUCTS, options=options),
    )
    exchanged = await client.ask(
        "item_public_token_exchange", ItemPublicTokenExchangeRequest(public_token=made.public_token)
    )
    item = simulator.plaid.item(exchanged.item_id)
    simulator.plaid.become_ready(item)

    rows, _ = await pull(client, item)
    accounts = (await client.ask("accounts_get", AccountsGetRequest(access_token=item.access_token))).accounts

    assert {(row.name, row.amount, row.pending, row.iso_currency_code) for row in rows.values()} == {
        ("MIGROS", 12.05, False, "CHF"),
        ("SBB", 7.0, True, "CHF"),
    }
    assert [(a.name, a.balances.current, a.balances.available) for a in accounts] == [
        ("Konto", 1000.25, 993.25),
        ("Custom Account 2", 10, 490),
    ]


async def test_accounts_and_balances_say_what_the_bank_holds(simulator: Running, client: Client) -> None:
    item = make(simulator, institution_id="ins_109508")

    cached = await client.ask("accounts_get", AccountsGetRequest(access_token=item.access_token))
    real = await client.ask("accounts_balance_get", AccountsBalanceGetRequest(access_token=item.access_token))

    for answer in (cached, real):
        assert {account.account_id for account in answer.accounts} == set(item.accounts)
        for account in answer.accounts:
            assert account.balances.current == float(item.accounts[account.account_id].current)
        assert answer.item.item_id == item.item_id


async def test_one_bank_asks_how_old_a_balance_may_be(simulator: Running, client: Client) -> None:
    item = make(simulator, institution_id="ins_900004")
    token = item.access_token

    plain = await client.refused("accounts_balance_get", AccountsBalanceGetRequest(access_token=token))
    answers = {}
    for name, oldest in {"old": START - dt.timedelta(days=1), "new": START + dt.timedelta(days=1)}.items():
        options = AccountsBalanceGetRequestOptions(min_last_updated_datetime=oldest)
        request = AccountsBalanceGetRequest(access_token=token, options=options)
        answers[name] = request
    known = await client.ask("accounts_balance_get", answers["old"])
    refused = await client.refused("accounts_balance_get", answers["new"])
    refresh = await client.refused("transactions_refresh", TransactionsRefreshRequest(access_token=token))

    assert plain[1]["error_code"] == "INVALID_FIELD"
    assert refused[1]["error_code"] == "LAST_UPDATED_DATETIME_OUT_OF_RANGE"
    assert refresh[1]["error_code"] == "PRODUCTS_NOT_SUPPORTED"
    assert {account.balances.last_updated_datetime for account in known.accounts} == {START}
    assert None in {account.balances.current for account in known.accounts}


async def test_an_item_tells_its_error_and_its_last_webhook(simulator: Running, client: Client) -> None:
    item = make(simulator, webhook_url="http://127.0.0.1:9/webhooks")
    reset = await client.ask("sandbox_item_reset_login", SandboxItemResetLoginRequest(access_token=item.access_token))

    shown = await client.ask("item_get", ItemGetRequest(access_token=item.access_token))
    refused = [
        await client.refused("transactions_sync", TransactionsSyncRequest(access_token=item.access_token)),
        await client.refused("accounts_get", AccountsGetRequest(access_token=item.access_token)),
    ]

    assert reset.reset_login
    assert shown.item.error.error_code == "ITEM_LOGIN_REQUIRED"
    assert shown.status.last_webhook.code_sent == "ERROR"
    assert shown.status.last_webhook.sent_at == START
    assert shown.status.transactions.last_failed_update == START
    assert [(status, body["error_type"], body["error_code"]) for status, body in refused] == [
        (400, "ITEM_ERROR", "ITEM_LOGIN_REQUIRED")
    ] * 2

    simulator.plaid.repair_item(item)
    shown = await client.ask("item_get", ItemGetRequest(access_token=item.access_token))
    assert shown.item.error is None
    assert shown.status.last_webhook.code_sent == "LOGIN_REPAIRED"


async def test_a_removed_item_is_unknown(simulator: Running, client: Client) -> None:
    item = make(simulator)
    await client.ask("item_remove", ItemRemoveRequest(access_token=item.access_token))

    for name, request in {
        "transactions_sync": TransactionsSyncRequest,
        "item_get": ItemGetRequest,
        "item_remove": ItemRemoveRequest,
    }.items():
        status, body = await client.refused(name, request(access_token=item.access_token))
        assert (status, body["error_code"]) == (400, "INVALID_ACCESS_TOKEN")


async def test_an_invalidated_token_is_replaced(simulator: Running, client: Client) -> None:
    item = make(simulator)
    old = item.access_token

    new = await client.ask("item_access_token_invalidate", ItemAccessTokenInvalidateRequest(access_token=old))

    await client.refused("item_get", ItemGetRequest(access_token=old))
    shown = await client.ask("item_get", ItemGetRequest(access_token=new.new_access_token))
    assert shown.item.item_id == item.item_id


async def test_a_webhook_address_can_change(simulator: Running, client: Client) -> None:
    item = make(simulator)
    request = ItemWebhookUpdateRequest(access_token=item.access_token, webhook="http://127.0.0.1:9/new")

    changed = await client.ask("item_webhook_update", request)

    assert changed.item.webhook == "http://127.0.0.1:9/new"
    assert item.last_webhook_code == "WEBHOOK_UPDATE_ACKNOWLEDGED"


async def test_a_refresh_posts_what_waits_and_adds_a_dollar(
    simulator: Running, client: Client, clock: ManualClock
) -> None:
    item = make(simulator, institution_id="ins_109511", transactions=100, days=5)
    waiting = set(item.pending)
    rows, cursor = await pull(client, item)

    await client.ask("transactions_refresh", TransactionsRefreshRequest(access_token=item.access_token))
    clock.advance(simulator.plaid.options.refresh_delay_s)
    simulator.plaid.tasks.run_due()
    page = await client.ask(
        "transactions_sync", TransactionsSyncRequest(access_token=item.access_token, cursor=cursor, count=500)
    )

    assert waiting
    assert {row.transaction_id for row in page.removed} == waiting
    assert any(row.pending for row in page.added)
    (dearer,) = page.modified
    assert dearer.amount == pytest.approx(rows[dearer.transaction_id].amount + 1)


async def test_a_developer_can_dictate_transactions(simulator: Running, client: Client) -> None:
    item = make(simulator)
    wishes = [
        CustomSandboxTransaction(
            date_transacted=START.date(), date_posted=posted, amount=amount, description="DICTATED"
        )
        for posted, amount in [(START.date(), 12.34), (START.date() + dt.timedelta(days=2), 5.0)]
    ]
    request = SandboxTransactionsCreateRequest(access_token=item.access_token, transactions=wishes)

    await client.ask("sandbox_transactions_create", request)

    told = [row for row in item.live.values() if row.name == "DICTATED"]
    assert [(row.amount, row.pending) for row in told] == [(Decimal("12.34"), False), (Decimal("5"), True)]
    many = SandboxTransactionsCreateRequest(access_token=item.access_token, transactions=wishes * 6)
    assert (await client.refused("sandbox_transactions_create", many))[1]["error_code"] == "INVALID_FIELD"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("SYNC_UPDATES_AVAILABLE", "TRANSACTIONS"),
        ("DEFAULT_UPDATE", "TRANSACTIONS"),
        ("DEFAULT_UPDATE", "HOLDINGS"),
        ("NEW_ACCOUNTS_AVAILABLE", "ITEM"),
        ("PENDING_DISCONNECT", "ITEM"),
        ("USER_PERMISSION_REVOKED", "ITEM"),
        ("USER_ACCOUNT_REVOKED", "ITEM"),
        ("LOGIN_REPAIRED", "ITEM"),
    ],
)
async def test_webhooks_can_be_fired(simulator: Running, client: Client, code: str, kind: str) -> None:
    item = make(simulator, webhook_url="http://127.0.0.1:9/webhooks")
    request = SandboxItemFireWebhookRequest(
        access_token=item.access_token, webhook_code=code, webhook_type=WebhookType(kind)
    )

    fired = await client.ask("sandbox_item_fire_webhook", request)

    assert fired.webhook_fired
    assert item.last_webhook_code == code


async def test_a_webhook_key_is_answered_by_its_id(simulator: Running, client: Client) -> None:
    key_id = simulator.plaid.keyring.current.kid

    answer = await client.ask("webhook_verification_key_get", WebhookVerificationKeyGetRequest(key_id=key_id))
    unknown = await client.refused("webhook_verification_key_get", WebhookVerificationKeyGetRequest(key_id="nobody"))

    assert (answer.key.kid, answer.key.alg, answer.key.expired_at) == (key_id, "ES256", None)
    assert unknown[1]["error_code"] == "INVALID_WEBHOOK_VERIFICATION_KEY_ID"


@pytest.mark.parametrize("code", sorted(KINDS))
async def test_every_error_is_an_error_to_plaid_python(simulator: Running, client: Client, code: str) -> None:
    item = make(simulator)
    simulator.plaid.faults.declare(Fault(code=code, item_id=item.item_id))

    status, body = await client.refused("transactions_sync", TransactionsSyncRequest(access_token=item.access_token))

    assert (status, body["error_type"], body["error_code"]) == (KINDS[code].status, KINDS[code].type, code)
    assert set(body) >= {"display_message", "documentation_url", "error_message", "request_id", "suggested_action"}


async def test_other_keys_are_refused(simulator: Running) -> None:
    keys = {"clientId": "simulated-client", "secret": "wrong"}
    api = plaid_api.PlaidApi(plaid.ApiClient(Configuration(host=simulator.url, api_key=keys)))

    with pytest.raises(plaid.ApiException) as refusal:
        await asyncio.to_thread(api.item_get, ItemGetRequest(access_token="access-sandbox-1"))

    assert json.loads(refusal.value.body)["error_code"] == "INVALID_API_KEYS"


async def test_the_older_taxonomy_can_be_asked_for(simulator: Running, client: Client) -> None:
    item = make(simulator, transactions=150)
    versions = {}
    for version in ("v1", "v2"):
        options = TransactionsSyncRequestOptions(
            personal_finance_category_version=PersonalFinanceCategoryVersion(version)
        )
        request = TransactionsSyncRequest(access_token=item.access_token, count=500, options=options)
        page = await client.ask("transactions_sync", request)
        versions[version] = [row.personal_finance_category for row in page.added if row.personal_finance_category]

    assert {kind.version.value for kind in versions["v1"]} == {"v1"}
    assert {kind.detailed for kind in versions["v1"]} != {kind.detailed for kind in versions["v2"]}
