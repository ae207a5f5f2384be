"""What a gateway between Plaid and here may answer: nothing of it reaches Postgres that Postgres refuses."""

import msgspec
import pytest

from runtime.plaid import models
from runtime.plaid.client import PlaidRefused, _refused
from schemas.errors import Quarantine, Retry

PAGE = {"added": [], "modified": [], "removed": [], "accounts": [], "next_cursor": "c", "has_more": False}


@pytest.mark.parametrize(
    "fields", [{"next_cursor": "c\0"}, {"transactions_update_status": "A\0"}, {"next_cursor": "c" * 5_000}]
)
def test_a_cursor_or_status_that_no_head_can_hold_is_one_items_trouble(fields: dict[str, str]) -> None:
    body = msgspec.json.encode(PAGE | fields)

    with pytest.raises(Quarantine, match="cannot be kept"):
        models.sync_page(body)


@pytest.mark.parametrize("code", ["A\0B", "", "C" * 101, "what ever", "\N{SNOWMAN}"])
@pytest.mark.parametrize("name", ["error_type", "error_code"])
def test_a_code_that_is_none_of_plaids_is_no_word_about_the_item(name: str, code: str) -> None:
    body = msgspec.json.encode({"error_type": "ITEM_ERROR", "error_code": "ITEM_LOCKED"} | {name: code})

    assert isinstance(_refused(400, body), Retry)


def test_plaids_own_codes_are_taken() -> None:
    found = _refused(400, b'{"error_type": "ITEM_ERROR", "error_code": "ITEM_LOGIN_REQUIRED", "request_id": "r"}')

    assert isinstance(found, PlaidRefused)
    assert (found.error_type, found.error_code, found.request_id) == ("ITEM_ERROR", "ITEM_LOGIN_REQUIRED", "r")
