"""Values are read strictly and refused by name; cursors, keys, tokens, rates and kept answers hold their rules."""

import asyncio
import datetime
import json
import time
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey

from gateway.http import auth, cursors, idempotency, rate_limit
from gateway.http.auth import SESSION_S_MAX, StreamTokens, Tenants, Viewer
from gateway.http.idempotency import Answer, IdempotentAnswers
from gateway.http.parameters import Parameter, read_all
from gateway.http.problems import Problem
from gateway.http.rate_limit import BURST_MAX, REQUESTS_PER_S, RequestBuckets
from gateway.routes import ROUTES
from projections.read.queries import TransactionFilter
from runtime.settings import Settings
from schemas.errors import Halt

SECRET = "s" * 32


def parameters(operation: str) -> tuple[Parameter, ...]:
    [route] = [route for route in ROUTES if route.operation == operation]
    return route.parameters


def read(
    operation: str, *, query: tuple[tuple[str, str], ...] = (), body: object = None, **path: str
) -> dict[str, Any]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_all(parameters(operation), path=path, query=query, headers={}, body=text)


def faults(operation: str, **request: Any) -> dict[str, tuple[str, str | None]]:
    with pytest.raises(Problem) as problem:
        read(operation, **request)
    assert problem.value.status is HTTPStatus.BAD_REQUEST
    return {fault.field: (fault.reason, fault.value) for fault in problem.value.faults}


def test_good_values_are_read_as_their_types() -> None:
    query = (("from", "2026-01-02"), ("pending", "false"), ("limit", "500"), ("account_id", "a"))

    values = read("list_transactions", query=query, user_id="user-1")

    assert values == {
        "user_id": "user-1",
        "account_id": "a",
        "item_id": None,
        "from": datetime.date(2026, 1, 2),
        "to": None,
        "pending": False,
        "in_review": None,
        "limit": 500,
        "cursor": None,
    }


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("limit", "501", "must be a whole number from 1 to 500"),
        ("limit", "0", "must be a whole number from 1 to 500"),
        ("limit", "1_0", "must be a whole number from 1 to 500"),
        ("limit", "", "must be a whole number from 1 to 500"),
        ("limit", "１", "must be a whole number from 1 to 500"),
        ("from", "2026-02-30", "must be a date as YYYY-MM-DD"),
        ("to", "20260101", "must be a date as YYYY-MM-DD"),
        ("pending", "yes", "must be true or false"),
        ("account_id", "", "must be 1 to 200 printable characters"),
        ("item_id", "a\nb", "must be 1 to 200 printable characters"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_itself(name: str, value: str, reason: str) -> None:
    assert faults("list_transactions", query=((name, value),), user_id="u") == {name: (reason, value)}


def test_all_wrong_values_are_named_at_once_unknown_and_repeated_ones_too() -> None:
    query = (("limit", "x"), ("sort", "asc"), ("from", "2026-01-01"), ("from", "2026-01-02"))

    found = faults("list_transactions", query=query, user_id="u")

    assert set(found) == {"limit", "sort", "from"}
    assert found["sort"][0] == "is not known here"
    assert found["from"][0] == "is given more than once"


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'"text"', b"\xff", b"[" * 5000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert faults("link_item", body=body) == {"body": ("must be a JSON object", None)}


def test_fields_of_a_body_are_checked_and_a_secret_is_never_repeated() -> None:
    found = faults("link_item", body={"user_id": 7, "public_token": "public-\n", "acess": 1})

    assert found == {
        "user_id": ("must be text, is a number", None),
        "public_token": ("must be 1 to 200 printable characters", None),
        "acess": ("is not known here", None),
    }
    assert faults("link_item", body={})["public_token"] == ("is missing", None)


@settings(deadline=None)
@given(
    date=st.dates(),
    own_id=st.binary(min_size=16, max_size=16),
    item=st.none() | st.text(max_size=5),
    pending=st.none() | st.booleans(),
)
def test_a_cursor_is_read_as_it_was_written(
    date: datetime.date, own_id: bytes, item: str | None, pending: bool | None
) -> None:
    which = TransactionFilter(item_id=item, pending=pending)

    assert cursors.read(cursors.write((date, own_id), which), which) == (date, own_id)


@settings(deadline=None)
@given(cursor=st.text(max_size=60))
def test_a_cursor_that_nobody_gave_is_refused_by_name(cursor: str) -> None:
    with pytest.raises(Problem) as problem:
        cursors.read(cursor, TransactionFilter())

    assert problem.value.faults[0].field == "cursor"


def test_a_cursor_of_other_filters_is_refused() -> None:
    cursor = cursors.write((datetime.date(2026, 1, 1), b"1" * 16), TransactionFilter(pending=True))

    with pytest.raises(Problem, match="cursor") as problem:
        cursors.read(cursor, TransactionFilter(pending=False))

    assert "other filters" in problem.value.faults[0].reason


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "key-a", "Basic key-a", "Bearer key-A", "Bearer \udcff"]
)
def test_without_a_right_key_it_is_401(header: str | None) -> None:
    with pytest.raises(Problem) as problem:
        Tenants({"key-a": "a", "key-b": "b"}).identify(header)

    assert problem.value.status is HTTPStatus.UNAUTHORIZED
    assert problem.value.headers == {"WWW-Authenticate": "Bearer"}


def test_each_key_is_its_tenants() -> None:
    tenants = Tenants({"key-a": "a", "key-b": "b", "key-b2": "b"})

    assert [tenants.identify(f"Bearer {key}") for key in ("key-a", "key-b", "key-b2")] == ["a", "b", "b"]
    assert tenants.identify("bearer key-a") == "a"


def test_a_gateway_without_keys_or_with_a_short_secret_does_not_start() -> None:
    with pytest.raises(Halt, match="TARTAN_API_KEYS"):
        Tenants({})
    with pytest.raises(Halt, match="TARTAN_STREAM_SECRET"):
        StreamTokens(Settings(stream_secret="short"))


def test_a_stream_token_opens_its_users_stream_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = StreamTokens(Settings(stream_secret=SECRET))
    token, _ = tokens.issue("tenant", 2**63 - 1)

    viewer = tokens.read(token)
    assert viewer is not None
    assert (viewer.tenant, viewer.user) == ("tenant", 2**63 - 1)
    monkeypatch.setattr(auth, "STREAM_TOKEN_S", -1)
    over, _ = tokens.issue("tenant", 1)
    assert tokens.read(over) is None


def test_a_token_is_renewed_for_some_hours_and_no_longer() -> None:
    tokens, now = StreamTokens(Settings(stream_secret=SECRET)), int(time.time())

    young = tokens.renew(Viewer("tenant", 1, now - SESSION_S_MAX + 10))
    old = tokens.renew(Viewer("tenant", 1, now - SESSION_S_MAX))

    assert young is not None
    assert tokens.read(young[0]) == Viewer("tenant", 1, now - SESSION_S_MAX + 10)
    assert old is None


@pytest.mark.parametrize("audience", ["another service", None])
def test_a_token_for_another_service_opens_nothing(audience: str | None) -> None:
    """Applications may sign tokens for other services with the same secret."""
    claims: dict[str, Any] = {"tenant": "tenant", "user": "1", "since": int(time.time()), "exp": int(time.time()) + 60}
    claims |= {} if audience is None else {"aud": audience}
    header, key = {"alg": auth.ALGORITHM}, OctKey.import_key(SECRET)
    tokens = StreamTokens(Settings(stream_secret=SECRET))

    assert tokens.read(jwt.encode(header, claims, key, algorithms=[auth.ALGORITHM])) is None
    ours = jwt.encode(header, {**claims, "aud": auth.AUDIENCE}, key, algorithms=[auth.ALGORITHM])
    assert tokens.read(ours) is not None


def test_a_token_that_is_not_ours_or_was_changed_opens_nothing() -> None:
    ours = StreamTokens(Settings(stream_secret=SECRET))
    token, _ = ours.issue("tenant", 1)
    head, claims, signature = token.split(".")
    stranger, _ = StreamTokens(Settings(stream_secret="t" * 32)).issue("tenant", 1)

    none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"
    for forged in (
        "",
        "x",
        stranger,
        f"{head}.{claims}.",
        f"{none}.{claims}.",
        f"{none}.{claims}.{signature}",
        f"{head}.{claims[:-2]}AA.{signature}",
        token + "A",
        "é.é.é",
        "A" * 5000,
    ):
        assert ours.read(forged) is None


def test_a_bucket_gives_its_burst_and_then_its_rate_to_each_tenant_alone() -> None:
    now = 0.0
    buckets = RequestBuckets(clock=lambda: now)
    for _ in range(BURST_MAX):
        buckets.take("a")

    with pytest.raises(Problem) as problem:
        buckets.take("a")
    assert (problem.value.status, problem.value.headers) == (HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": "1"})
    buckets.take("b")
    now = 1.0
    for _ in range(int(REQUESTS_PER_S)):
        buckets.take("a")
    with pytest.raises(Problem):
        buckets.take("a")
    assert rate_limit.BURST_MAX >= rate_limit.REQUESTS_PER_S


async def test_the_same_key_is_answered_again_and_done_once() -> None:
    answers, done = IdempotentAnswers(), 0

    async def act() -> Answer:
        nonlocal done
        done += 1
        await asyncio.sleep(0)
        return Answer(HTTPStatus.CREATED, {"number": done})

    both = await asyncio.gather(
        *(answers.once(tenant="t", key="k", body=b"1", action=act) for _ in range(5)),
        answers.once(tenant="other", key="k", body=b"1", action=act),
    )
    again = await answers.once(tenant="t", key="k", body=b"1", action=act)

    assert {answer.document["number"] for answer in both[:5]} == {again.document["number"]}
    assert done == 2
    await answers.once(tenant="t", key=None, body=b"1", action=act)
    assert done == 3
    with pytest.raises(Problem) as problem:
        await answers.once(tenant="t", key="k", body=b"2", action=act)
    assert problem.value.status is HTTPStatus.CONFLICT


async def test_an_answer_that_failed_is_not_kept_nor_one_that_is_over_or_too_many() -> None:
    now, failing = 0.0, True
    answers = IdempotentAnswers(clock=lambda: now)

    async def act() -> Answer:
        if failing:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "away")
        return Answer(HTTPStatus.CREATED, {"at": now})

    with pytest.raises(Problem):
        await answers.once(tenant="t", key="k", body=b"1", action=act)
    failing = False
    assert (await answers.once(tenant="t", key="k", body=b"1", action=act)).document == {"at": 0.0}
    now = idempotency.TTL_S
    assert (await answers.once(tenant="t", key="k", body=b"1", action=act)).document == {"at": now}
    for number in range(idempotency.ANSWERS_MAX + 1):
        await answers.once(tenant="t", key=f"k{number}", body=b"1", action=act)
    assert len(answers._entries) == idempotency.ANSWERS_MAX
