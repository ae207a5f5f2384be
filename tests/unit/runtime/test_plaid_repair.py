"""Odd answers of Plaid: repaired with a reason, or refused; what is accepted is what a reader can hold."""

from typing import Any

import msgspec
import pytest

from runtime.plaid import item_models, models
from runtime.plaid.client import PlaidRefused, _refused
from runtime.plaid.repair import REPAIRS
from schemas.errors import Quarantine
from schemas.log.records import Account, Transaction

TRANSACTION = {"transaction_id": "t", "account_id": "a", "amount": 12.5, "date": "2026-03-01", "pending": False}
ACCOUNT = {"account_id": "a", "type": "depository", "balances": {"current": 10}}
PAGE = {"added": [], "modified": [], "removed": [], "accounts": [], "next_cursor": "c", "has_more": False}


def page(**fields: Any) -> bytes:
    return msgspec.json.encode(PAGE | fields)


def read(**fields: Any) -> tuple[Transaction, dict[str, str]]:
    [transaction] = models.sync_page(page(added=[TRANSACTION | fields])).added
    return transaction, repairs_of(transaction)


def repairs_of(record: Transaction | Account) -> dict[str, str]:
    repairs: dict[str, str] = msgspec.json.decode(record.extra_json or "{}").get(REPAIRS, {})
    return repairs


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("pending", None, False),
        ("pending", "true", True),
        ("name", 4711, "4711"),
        ("name", True, "true"),
        ("name", ["a"], None),
        ("check_number", 17, "17"),
        ("authorized_date", "", None),
        ("authorized_date", "2026-02-28T12:00:00Z", "2026-02-28"),
        ("authorized_date", "soon", None),
        ("date", "2026-02-28T12:00:00Z", "2026-02-28"),
        ("personal_finance_category", "FOOD", None),
    ],
)
def test_a_field_in_another_form_is_repaired_and_named(field: str, value: Any, expected: Any) -> None:
    transaction, repairs = read(**{field: value})

    name = "category_primary" if field == "personal_finance_category" else field
    assert getattr(transaction, name) == expected
    assert list(repairs) == [field]
    assert transaction.transaction_id == "t"


def test_digits_that_no_row_can_hold_are_rounded_and_a_text_is_read_exactly() -> None:
    body = page(added=[TRANSACTION | {"amount": "AMOUNT"}])

    [long] = models.sync_page(body.replace(b'"AMOUNT"', b"12345678.123456785123456789")).added
    [text] = models.sync_page(body.replace(b"AMOUNT", b"89.45")).added

    assert (long.amount, repairs_of(long)) == ("12345678.12345679", {"amount": "rounded to 8 decimals"})
    assert text.amount == "89.45"


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": None},
        {"amount": "much"},
        {"amount": 1e20},
        {"date": ""},
        {"date": None},
        {"date": "20260301"},
        {"transaction_id": ""},
        {"transaction_id": None},
    ],
)
def test_what_no_repair_can_read_is_refused_with_its_field(wrong: dict[str, Any]) -> None:
    [field] = wrong
    with pytest.raises(Quarantine, match=field):
        read(**wrong)


@pytest.mark.parametrize("amount", [89.4500000000003, 1e-9, -0.1])
def test_the_noise_of_a_binary_fraction_is_kept(amount: float) -> None:
    transaction, repairs = read(amount=amount)

    assert (float(transaction.amount), repairs) == (amount, {})


def test_null_lists_are_empty() -> None:
    sync = models.sync_page(page(added=None, modified=None, removed=None, accounts=None))

    assert (sync.added, sync.modified, sync.removed, sync.accounts) == ([], [], [], [])


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [("type", None, "other"), ("balances", None, None), ("mask", 1234, "1234"), ("balances", {"current": "ten"}, None)],
)
def test_an_accounts_field_in_another_form_is_repaired_and_named(field: str, value: Any, kept: Any) -> None:
    [account] = models.sync_page(page(accounts=[ACCOUNT | {field: value}])).accounts

    assert getattr(account, "current" if field == "balances" else field) == kept
    assert list(repairs_of(account)) == [field]


@pytest.mark.parametrize("name", [rb"Caf\ud83d", rb"Caf\u0000", b"Caf\xff", rb"Caf\uDC00"])
def test_text_that_no_reader_can_hold_has_a_replacement_character(name: bytes) -> None:
    body = page(added=[TRANSACTION | {"name": "NAME"}]).replace(b"NAME", name)

    assert models.sync_page(body).added[0].name == "Caf\N{REPLACEMENT CHARACTER}"


def test_escapes_that_are_text_stay() -> None:
    body = page(added=[TRANSACTION | {"name": "NAME"}]).replace(b"NAME", rb"\\u0000 \ud83d\ude00 \u0000")

    assert models.sync_page(body).added[0].name == "\\u0000 \N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"


def test_an_errors_code_counts_whatever_its_message_holds() -> None:
    body = rb'{"error_type": "ITEM_ERROR", "error_code": "ITEM_LOGIN_REQUIRED", "display_message": "Caf\ud83d\u0000"}'

    refused = _refused(400, body)

    assert isinstance(refused, PlaidRefused)
    assert refused.error_code == "ITEM_LOGIN_REQUIRED"


def test_a_reason_with_nul_leaves_the_items_error() -> None:
    error = {"error_type": "ITEM_ERROR", "error_code": "ITEM_LOGIN_REQUIRED", "error_code_reason": "a\0b"}
    answer = item_models.item(msgspec.json.encode({"item": {"item_id": "i", "error": error}}))

    assert (answer.error_code, answer.error_reason) == ("ITEM_LOGIN_REQUIRED", "a\N{REPLACEMENT CHARACTER}b")


def test_a_currency_in_small_letters_is_no_other_one() -> None:
    assert read(iso_currency_code="usd")[0].currency == "USD"
