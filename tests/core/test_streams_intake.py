"""Webhooks: what each asks for, and which of them are repeats."""

import base64
import json
from typing import Any

import pytest

from schemas.records import Webhook
from streams.intake import Seen, gather, identified, react


def webhook(
    body: Any = None, *, kid: str = "k", iat: int = 1, digest: bytes = b"\0" * 32, stale: bool = False
) -> Webhook:
    parts = [json.dumps({"alg": "ES256", "kid": kid}), json.dumps({"iat": iat, "request_body_sha256": "x"})]
    jwt = ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts) + ".signature"
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body, indent=2).encode()
    return Webhook(1_700_000_000_000_000, raw, digest, jwt, "{}", stale)


def body(kind: str, code: str, **fields: Any) -> dict[str, Any]:
    return {"webhook_type": kind, "webhook_code": code, "item_id": "item"} | fields


def seen(kind: str, code: str, **fields: Any) -> Seen:
    return react(webhook(body(kind, code, **fields)), partition=2, offset=7)


def test_news_of_transactions_mark_the_item_with_their_place_in_the_log() -> None:
    asked = seen("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", initial_update_complete=True)

    assert asked.mark is not None
    assert (asked.reaction, asked.mark.item_id, asked.hint) == ("marked", "item", None)
    assert (asked.mark.cause.webhook_partition, asked.mark.cause.webhook_offset) == (2, 7)
    assert asked.mark.cause.webhook_received_at == 1_700_000_000_000_000
    assert asked.mark.received_at.isoformat() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("code", ["INITIAL_UPDATE", "HISTORICAL_UPDATE", "DEFAULT_UPDATE", "TRANSACTIONS_REMOVED"])
def test_legacy_codes_count_only_while_nothing_was_read(code: str) -> None:
    asked = seen("TRANSACTIONS", code, removed_transactions=["t"], error=None)

    assert asked.mark is not None
    assert asked.mark.unread_only


@pytest.mark.parametrize(
    ("code", "accounts"),
    [
        ("ERROR", False), ("LOGIN_REPAIRED", True), ("PENDING_EXPIRATION", False), ("PENDING_DISCONNECT", False),
        ("USER_PERMISSION_REVOKED", False), ("USER_ACCOUNT_REVOKED", True), ("NEW_ACCOUNTS_AVAILABLE", True),
    ],
)  # fmt: skip
def test_what_concerns_the_item_leaves_a_hint_and_marks_it(code: str, accounts: bool) -> None:
    asked = seen("ITEM", code)

    assert asked.mark is not None
    assert asked.hint is not None
    assert (asked.hint.code, asked.hint.offset, asked.hint.partition) == (code, 7, 2)
    assert asked.mark.accounts is accounts


def test_a_hint_keeps_a_few_fields_and_no_others() -> None:
    asked = seen(
        "ITEM", "ERROR", reason="r", disconnect_time="2030", new_webhook_url="https://example.com", account_id=5,
        error={"error_code": "ITEM_LOGIN_REQUIRED", "error_message": "secret", "error_code_reason": None},
    )  # fmt: skip

    assert asked.hint is not None
    assert asked.hint.fields == {"reason": "r", "disconnect_time": "2030", "error_code": "ITEM_LOGIN_REQUIRED"}


@pytest.mark.parametrize(
    ("content", "reaction"),
    [
        (body("TRANSACTIONS", "RECURRING_TRANSACTIONS_UPDATE"), "nothing"),
        (body("ITEM", "WEBHOOK_UPDATE_ACKNOWLEDGED"), "nothing"),
        (body("LIABILITIES", "DEFAULT_UPDATE"), "nothing"),
        (body("TRANSACTIONS", "SOMETHING_OF_2030"), "unknown"),
        (body("ISSUES", "ISSUE_RESOLVED"), "unknown"),
        ({"webhook_type": "DASHBOARD_CONFIGURED_ALERT", "webhook_code": "X"}, "unknown"),
        ({"webhook_type": 5, "webhook_code": None, "item_id": []}, "unknown"),
        (None, "nothing"),
        (b"not json", "unreadable"),
        (b"[]", "unreadable"),
    ],
)
def test_whatever_else_comes_does_nothing_and_is_counted(content: Any, reaction: str) -> None:
    assert react(webhook(content), partition=0, offset=0) == Seen(reaction)


def test_a_stale_webhook_marks_and_its_word_about_a_state_is_not_taken() -> None:
    asked = react(webhook(body("ITEM", "PENDING_DISCONNECT"), stale=True), partition=0, offset=0)

    assert asked.mark is not None
    assert (asked.mark.stale, asked.hint) == (True, None)


def key(one: Webhook) -> bytes:
    return identified(one, partition=0, offset=0).key


def test_the_key_of_a_repeat_is_that_of_the_signature() -> None:
    first = webhook(body("ITEM", "ERROR"))

    assert key(first) == key(webhook(body("ITEM", "ERROR")))
    assert key(first) != key(webhook(body("ITEM", "ERROR"), iat=2))
    assert key(first) != key(webhook(body("ITEM", "ERROR"), kid="other"))
    assert key(first) != key(webhook(body("ITEM", "ERROR"), digest=b"\1" * 32))


@pytest.mark.parametrize("jwt", ["", "a", "a.b", "!!.!!.!!", "W10.W10.x", "eyJ9.eyJ9.x"])
def test_a_jwt_that_cannot_be_read_is_a_key_by_itself(jwt: str) -> None:
    broken = Webhook(1_700_000_000_000_000, b"{}", b"\0" * 32, jwt, "{}")

    assert len(key(broken)) == 32
    assert key(broken) != key(webhook())
    assert not identified(broken, partition=0, offset=0).prompt


def test_webhooks_read_together_make_one_mark_an_item_and_no_repeat_counts() -> None:
    contents = [
        body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE"), body("ITEM", "NEW_ACCOUNTS_AVAILABLE"),
        body("TRANSACTIONS", "INITIAL_UPDATE"), body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", item_id="other"),
    ]  # fmt: skip
    fresh = [
        identified(webhook(content, iat=number), partition=0, offset=number) for number, content in enumerate(contents)
    ]  # fmt: skip
    known = identified(webhook(contents[0], iat=8), partition=0, offset=8)
    twice = identified(webhook(contents[0], iat=0), partition=0, offset=9)

    batch = gather([*fresh, known, twice], {one.key for one in fresh})

    assert [mark.item_id for mark in batch.marks] == ["item", "other"]
    mark = batch.marks[0]
    assert (mark.cause.webhook_offset, mark.accounts, mark.unread_only) == (2, True, False)
    assert [hint.code for hint in batch.hints] == ["NEW_ACCOUNTS_AVAILABLE"]
    assert batch.repeats == [known, twice]
    assert batch.reactions == {"marked": 2, "hinted": 1, "legacy": 1}


def test_two_genuine_webhooks_of_one_second_both_count() -> None:
    signed = webhook(body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE"), iat=1_699_999_999)
    one = identified(signed, partition=0, offset=4)

    batch = gather([one], fresh=set())

    assert one.prompt
    assert [mark.cause.webhook_offset for mark in batch.marks] == [4]
    assert not batch.repeats
