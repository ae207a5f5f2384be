"""Webhooks: what each asks for, and which of them are repeats."""

import base64
import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.kafka.reader import Position, Received
from runtime.scheduler.types import Hint, Mark
from schemas.encoding import codec
from schemas.log.records import Webhook
from streams.mark_due import MarkDue
from streams.webhooks.reactions import REACTIONS, Reaction, collect, identify, react

TEXTS = st.text(st.characters(codec=None, categories=None), max_size=20)
"""Any text that JSON can name, NUL and lone surrogates included."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
NAMED = st.fixed_dictionaries(
    {},
    optional={
        "webhook_type": JSON | st.sampled_from(["TRANSACTIONS", "ITEM"]),
        "webhook_code": JSON | st.sampled_from(["SYNC_UPDATES_AVAILABLE", "ERROR", "PENDING_DISCONNECT"]),
        "item_id": JSON | TEXTS,
        "reason": JSON,
        "account_id": JSON,
        "error": JSON | st.fixed_dictionaries({}, optional={"error_code": JSON, "error_code_reason": TEXTS}),
    },
)


def webhook(
    body: Any = None, *, kid: str = "k", iat: int = 1, digest: bytes = b"\0" * 32, stale: bool = False
) -> Webhook:
    parts = [json.dumps({"alg": "ES256", "kid": kid}), json.dumps({"iat": iat, "request_body_sha256": "x"})]
    jwt = ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts) + ".signature"
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body, indent=2).encode()
    return Webhook(1_700_000_000_000_000, raw, digest, jwt, "{}", stale)


def body(kind: str, code: str, **fields: Any) -> dict[str, Any]:
    return {"webhook_type": kind, "webhook_code": code, "item_id": "item"} | fields


def seen(kind: str, code: str, **fields: Any) -> Reaction:
    return react(webhook(body(kind, code, **fields)), partition=2, offset=7)


def test_news_of_transactions_mark_the_item_with_their_place_in_the_log() -> None:
    asked = seen("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", initial_update_complete=True)

    assert asked.mark is not None
    assert (asked.kind, asked.mark.item_id, asked.hint) == ("marked", "item", None)
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
        ("ERROR", False),
        ("LOGIN_REPAIRED", True),
        ("PENDING_EXPIRATION", False),
        ("PENDING_DISCONNECT", False),
        ("USER_PERMISSION_REVOKED", False),
        ("USER_ACCOUNT_REVOKED", True),
        ("NEW_ACCOUNTS_AVAILABLE", True),
    ],
)
def test_what_concerns_the_item_leaves_a_hint_and_marks_it(code: str, accounts: bool) -> None:
    asked = seen("ITEM", code)

    assert asked.mark is not None
    assert asked.hint is not None
    assert (asked.hint.code, asked.hint.offset, asked.hint.partition) == (code, 7, 2)
    assert asked.mark.accounts is accounts


def test_a_hint_keeps_a_few_fields_and_no_others() -> None:
    asked = seen(
        "ITEM",
        "ERROR",
        reason="r",
        disconnect_time="2030",
        new_webhook_url="https://example.com",
        account_id=5,
        error={"error_code": "ITEM_LOGIN_REQUIRED", "error_message": "secret", "error_code_reason": None},
    )

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
        (b"[" * 30_000, "unreadable"),
        (b'{"item_id": "\xff"}', "unreadable"),
        (body([], "X"), "unknown"),  # type: ignore[arg-type]
        (body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", item_id="a\0"), "unknown"),
        (body("TRANSACTIONS", {}), "unknown"),  # type: ignore[arg-type]
    ],
)
def test_whatever_else_comes_does_nothing_and_is_counted(content: Any, reaction: str) -> None:
    assert react(webhook(content), partition=0, offset=0) == Reaction(reaction)


def test_a_stale_webhook_marks_and_its_word_about_a_state_is_not_taken() -> None:
    asked = react(webhook(body("ITEM", "PENDING_DISCONNECT"), stale=True), partition=0, offset=0)

    assert asked.mark is not None
    assert (asked.mark.stale, asked.hint) == (True, None)


def test_a_hint_keeps_nothing_that_postgres_refuses() -> None:
    asked = seen("ITEM", "ERROR", reason="a\0", account_id="a", error={"error_code": "\0", "error_code_reason": "r"})

    assert asked.hint is not None
    assert asked.hint.fields == {"account_id": "a", "error_code_reason": "r"}


def assert_can_be_kept(asked: Reaction) -> None:
    """The reaction is counted, and Postgres holds whatever text is left."""
    assert asked.kind in REACTIONS
    texts = [asked.mark.item_id] if asked.mark else []
    texts += [asked.hint.item_id, *asked.hint.fields.values()] if asked.hint else []
    assert all("\0" not in text and text.encode() for text in texts if text)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises(raw: bytes) -> None:
    assert_can_be_kept(react(webhook(raw), partition=0, offset=0))


@given(NAMED.map(lambda value: json.dumps(value).encode()))
def test_no_member_of_a_body_raises(raw: bytes) -> None:
    assert_can_be_kept(react(webhook(raw), partition=0, offset=0))


@given(st.integers(), st.binary(), TEXTS)
def test_no_record_raises(received_at: int, digest: bytes, jwt: str) -> None:
    each = Webhook(received_at, b"{}", digest, jwt, "{}")

    assert len(key(each)) == 32
    assert_can_be_kept(react(each, partition=0, offset=0))


@given(JSON, JSON)
def test_no_signed_header_raises(header: Any, claims: Any) -> None:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in (header, claims)]

    assert len(key(Webhook(1, b"{}", b"", ".".join(parts) + ".s", "{}"))) == 32


def test_a_header_nested_without_end_is_a_key_by_itself() -> None:
    part = base64.urlsafe_b64encode(b"[" * 30_000).decode()

    assert len(key(Webhook(1, b"{}", b"", f"{part}.{part}.s", "{}"))) == 32


def test_a_time_that_no_calendar_has_is_unreadable() -> None:
    assert react(Webhook(2**62, b"{}", b"", "", "{}"), partition=0, offset=0) == Reaction("unreadable")


class Marking:
    """A transaction of memory."""

    positions: Mapping[int, Position] = {}

    def __init__(self) -> None:
        self.marks: list[str] = []
        self.position = 0

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        return set(keys)

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        self.marks += [mark.item_id for mark in marks]
        return len(marks)

    async def advance(self, positions: Mapping[int, Position]) -> None:
        self.position = positions[0].next


GENUINE = codec.encode(webhook(body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE")))


@given(
    st.binary()
    | st.integers(0, len(GENUINE)).flatmap(lambda index: st.binary().map(lambda tail: GENUINE[:index] + tail))
)
async def test_bytes_that_are_no_webhook_hold_up_none_behind_them(raw: bytes) -> None:
    marking = Marking()

    @asynccontextmanager
    async def begin(_: Collection[int]) -> AsyncIterator[Marking]:
        yield marking

    agent = MarkDue(None, begin, on_commit=lambda: None)  # type: ignore[arg-type]
    await agent.process([Received(0, index, None, value, {}, 0) for index, value in enumerate([raw, GENUINE])])

    assert "item" in marking.marks
    assert marking.position == 2


def key(each: Webhook) -> bytes:
    return identify(each, partition=0, offset=0).key


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
    assert not identify(broken, partition=0, offset=0).prompt


def test_webhooks_read_together_make_one_mark_an_item_and_no_repeat_counts() -> None:
    contents = [
        body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE"),
        body("ITEM", "NEW_ACCOUNTS_AVAILABLE"),
        body("TRANSACTIONS", "INITIAL_UPDATE"),
        body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", item_id="other"),
    ]
    fresh = [
        identify(webhook(content, iat=number), partition=0, offset=number) for number, content in enumerate(contents)
    ]
    known = identify(webhook(contents[0], iat=8), partition=0, offset=8)
    twice = identify(webhook(contents[0], iat=0), partition=0, offset=9)

    batch = collect([*fresh, known, twice], {each.key for each in fresh})

    assert [mark.item_id for mark in batch.marks] == ["item", "other"]
    mark = batch.marks[0]
    assert (mark.cause.webhook_offset, mark.accounts, mark.unread_only) == (2, True, False)
    assert [hint.code for hint in batch.hints] == ["NEW_ACCOUNTS_AVAILABLE"]
    assert batch.repeats == [known, twice]
    assert batch.reactions == {"marked": 2, "hinted": 1, "legacy": 1}


def test_two_genuine_webhooks_of_one_second_both_count() -> None:
    signed = webhook(body("TRANSACTIONS", "SYNC_UPDATES_AVAILABLE"), iat=1_699_999_999)
    each = identify(signed, partition=0, offset=4)

    batch = collect([each], new_keys=set())

    assert each.prompt
    assert [mark.cause.webhook_offset for mark in batch.marks] == [4]
    assert not batch.repeats
