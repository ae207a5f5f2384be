"""Plaid's codes: what each asks for, and which state an Item is in."""

from datetime import UTC, datetime

import pytest

from runtime.plaid.item_models import ItemAnswer, parse_time
from runtime.scheduler.types import KnownHint
from schemas.events import ACTIVE, GONE, LOGIN_REQUIRED, PENDING_DISCONNECT, PENDING_EXPIRATION, REFUSED, REVOKED
from streams.sync.plaid_errors import (
    REMOVED_CODES,
    STOPPING,
    ErrorClass,
    ItemState,
    classify,
    item_state,
    stopped_state,
)


def answer(code: str | None = None, **fields: str | None) -> ItemAnswer:
    """What /item/get says."""
    given = dict.fromkeys(ItemAnswer._fields) | {"item_id": "i", "error_code": code} | fields
    return ItemAnswer(**given)  # type: ignore[arg-type]


def state(code: str | None, *hints: KnownHint, known: str = ACTIVE, known_code: str | None = None) -> ItemState:
    return item_state(answer(code), hints, known_state=known, known_code=known_code)


def hint(code: str, offset: int = 0, **fields: str) -> KnownHint:
    return KnownHint(offset, code, fields)


@pytest.mark.parametrize(
    ("error_type", "error_code", "expected"),
    [
        ("TRANSACTIONS_ERROR", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION", ErrorClass.MUTATION),
        ("API_ERROR", "INTERNAL_SERVER_ERROR", ErrorClass.TRANSIENT),
        ("API_ERROR", "PLANNED_MAINTENANCE", ErrorClass.TRANSIENT),
        ("RATE_LIMIT_EXCEEDED", "TRANSACTIONS_SYNC_LIMIT", ErrorClass.RATE_LIMIT),
        ("INSTITUTION_ERROR", "INSTITUTION_RATE_LIMIT", ErrorClass.RATE_LIMIT),
        ("INSTITUTION_ERROR", "INSTITUTION_DOWN", ErrorClass.OUTAGE),
        ("INSTITUTION_ERROR", "INSTITUTION_NOT_RESPONDING", ErrorClass.OUTAGE),
        ("INVALID_INPUT", "INVALID_API_KEYS", ErrorClass.OUTAGE),
        ("ITEM_ERROR", "ITEM_LOGIN_REQUIRED", ErrorClass.USER_ACTION),
        ("ITEM_ERROR", "NO_ACCOUNTS", ErrorClass.USER_ACTION),
        ("ITEM_ERROR", "ITEM_NOT_FOUND", ErrorClass.GONE),
        ("INVALID_INPUT", "INVALID_ACCESS_TOKEN", ErrorClass.GONE),
        ("ITEM_ERROR", "USER_PERMISSION_REVOKED", ErrorClass.GONE),
        ("INSTITUTION_ERROR", "INSTITUTION_NO_LONGER_SUPPORTED", ErrorClass.REJECTED),
        ("INVALID_REQUEST", "MISSING_FIELDS", ErrorClass.REJECTED),
        ("ITEM_ERROR", "PRODUCT_NOT_READY", ErrorClass.NOT_READY),
        ("SOME_NEW_ERROR", "SOMETHING_OF_2030", ErrorClass.TRANSIENT),
    ],
)
def test_each_code_has_its_error_class(error_type: str, error_code: str, expected: ErrorClass) -> None:
    assert classify(error_type, error_code) is expected


def test_a_field_that_plaid_refuses_is_the_cursor_only_where_one_was_sent() -> None:
    assert classify("INVALID_REQUEST", "INVALID_FIELD", with_cursor=True) is ErrorClass.CURSOR
    assert classify("INVALID_REQUEST", "INVALID_FIELD") is ErrorClass.REJECTED


def test_only_codes_that_name_the_item_say_that_it_is_removed() -> None:
    assert "ITEM_NOT_FOUND" in REMOVED_CODES
    assert "ITEM_CONCURRENTLY_DELETED" in REMOVED_CODES
    assert "INVALID_ACCESS_TOKEN" not in REMOVED_CODES
    assert "USER_PERMISSION_REVOKED" not in REMOVED_CODES


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("ITEM_LOGIN_REQUIRED", LOGIN_REQUIRED),
        ("USER_PERMISSION_REVOKED", REVOKED),
        ("ITEM_NOT_FOUND", GONE),
        ("INSTITUTION_NO_LONGER_SUPPORTED", REFUSED),
    ],
)
def test_what_plaid_says_now_is_the_state(code: str, expected: str) -> None:
    assert state(code) == ItemState(expected, code)
    assert stopped_state(classify("", code), code, "why") == ItemState(expected, code, "why")


def test_a_request_that_plaid_calls_wrong_is_a_state_too_whatever_its_code() -> None:
    asked = classify("INVALID_REQUEST", "SOMETHING_OF_2030")

    assert asked in STOPPING
    assert stopped_state(asked, "SOMETHING_OF_2030", None) == ItemState(REFUSED, "SOMETHING_OF_2030")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.678+01:00", datetime(2026, 1, 2, 2, 4, 5, 678_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("yesterday", None),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59-05:00", None),
        ("2101-01-01T00:00:00Z", None),
        (None, None),
    ],
)
def test_when_the_bank_was_read_is_taken_where_it_is_a_time(text: str | None, expected: datetime | None) -> None:
    assert parse_time(text) == expected


def test_an_error_that_arrives_after_the_repair_stops_nothing() -> None:
    late = hint("ERROR", error_code="ITEM_LOGIN_REQUIRED")

    assert state(None, late) == ItemState(ACTIVE)
    assert state(None, hint("USER_PERMISSION_REVOKED")) == ItemState(ACTIVE)


def test_a_repair_that_arrives_before_the_next_error_brings_nothing_back() -> None:
    assert state("ITEM_LOGIN_REQUIRED", hint("LOGIN_REPAIRED")).state == LOGIN_REQUIRED


def test_an_outage_of_the_bank_is_no_state_of_the_item() -> None:
    assert state("INSTITUTION_DOWN") == ItemState(ACTIVE)


def test_what_plaid_cannot_confirm_is_taken_from_the_hint_with_its_date() -> None:
    disconnect = state(None, hint("PENDING_DISCONNECT", reason="INSTITUTION_MIGRATION", disconnect_time="2030"))
    expiration = state(None, hint("PENDING_EXPIRATION", consent_expiration_time="2031"))
    undated = item_state(
        answer(consent_expiration_time="2032"), [hint("PENDING_EXPIRATION")], known_state=ACTIVE, known_code=None
    )

    assert disconnect == ItemState(
        PENDING_DISCONNECT, "PENDING_DISCONNECT", "INSTITUTION_MIGRATION", "2030", from_webhook=True
    )
    assert expiration == ItemState(PENDING_EXPIRATION, "PENDING_EXPIRATION", None, "2031", from_webhook=True)
    assert undated.effective_at == "2032"


def test_an_announced_end_stays_announced_until_a_repair() -> None:
    announced = {"known": PENDING_DISCONNECT, "known_code": "PENDING_DISCONNECT"}

    assert state(None, **announced) == ItemState(PENDING_DISCONNECT, "PENDING_DISCONNECT")
    assert state(None, hint("LOGIN_REPAIRED"), **announced) == ItemState(ACTIVE)
    both = (hint("LOGIN_REPAIRED", 1), hint("PENDING_EXPIRATION", 2))
    assert state(None, *both, **announced).state == PENDING_EXPIRATION


def test_a_repeat_without_fields_keeps_the_reason_and_date() -> None:
    announced = {"known": PENDING_DISCONNECT, "known_code": "PENDING_DISCONNECT"}
    first = hint("PENDING_DISCONNECT", 1, reason="INSTITUTION_MIGRATION", disconnect_time="2030")
    repeat = hint("PENDING_DISCONNECT", 2)

    assert not state(None, repeat, **announced).from_webhook
    assert state(None, first, repeat, **announced).effective_at == "2030"
    assert state(None, hint("LOGIN_REPAIRED", 1), repeat, **announced).state == PENDING_DISCONNECT


def test_a_question_that_no_webhook_led_to_takes_no_word_of_a_webhook_back() -> None:
    before = {"known": ACTIVE, "known_code": "NEW_ACCOUNTS_AVAILABLE"}

    assert state(None, **before) == ItemState(ACTIVE, "NEW_ACCOUNTS_AVAILABLE")
    assert state(None, hint("LOGIN_REPAIRED"), **before) == ItemState(ACTIVE)


def test_new_accounts_are_told_and_change_no_state() -> None:
    assert state(None, hint("NEW_ACCOUNTS_AVAILABLE")) == ItemState(ACTIVE, "NEW_ACCOUNTS_AVAILABLE", from_webhook=True)
    assert state(None, hint("NEW_ACCOUNTS_AVAILABLE"), known=PENDING_DISCONNECT).state == PENDING_DISCONNECT


def test_an_item_that_was_stopped_is_active_again_once_plaid_says_so() -> None:
    assert state(None, known=LOGIN_REQUIRED, known_code="ITEM_LOGIN_REQUIRED") == ItemState(ACTIVE)
    assert state(None, known=GONE, known_code="ITEM_NOT_FOUND") == ItemState(ACTIVE)
