"""What a pass asks beside the sync: the Item's state, how fresh the bank's data is, and the bank itself."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from schemas.errors import Retry
from schemas.log.records import Cause
from streams.sync import backoff, item_client
from tests.support.streams_memory import HEAD, PAGE, Memory, fetched, refusal

MANUAL = {"cause": Cause("manual", by="someone"), "lane": 1}
REFRESH = MANUAL | {"refresh_wanted": True}
UPDATED = {"last_successful_update": "2026-01-01T10:00:00Z"}
BROKEN = refusal("INTERNAL_SERVER_ERROR", "API_ERROR")
LIMIT = refusal("TRANSACTIONS_REFRESH_LIMIT", "RATE_LIMIT_EXCEEDED")


async def test_who_asks_for_a_sync_is_told_how_fresh_the_banks_data_is() -> None:
    memory = Memory(bank_item=UPDATED)

    result = await fetched(memory, **MANUAL)

    assert result is not None
    assert (result.outcome, result.bank_asked) == ("appended", True)
    assert result.bank_updated_at == datetime(2026, 1, 1, 10, tzinfo=UTC)
    assert (result.refreshed, result.due_in_s) == (False, None)


async def test_a_pass_that_nobody_waits_for_does_not_ask() -> None:
    memory = Memory(bank_item=UPDATED)

    result = await fetched(memory)

    assert result is not None
    assert (memory.told, result.bank_asked, result.bank_updated_at) == ([], False, None)


async def test_asking_how_fresh_it_is_tells_no_state_that_was_known() -> None:
    memory = Memory()
    known_head = msgspec.structs.replace(HEAD, code="NEW_ACCOUNTS_AVAILABLE")

    await fetched(memory, head=known_head, **MANUAL)

    [head] = memory.heads
    assert (head.type, head.item_code) == ("sync", "NEW_ACCOUNTS_AVAILABLE")
    assert [kind for kind, _ in memory.events(0)] == ["transaction.added"]


@pytest.mark.parametrize("error", [refusal("ITEM_GET_LIMIT", "RATE_LIMIT_EXCEEDED"), BROKEN, Retry("late")])
async def test_without_an_answer_about_freshness_the_sync_goes_on(error: Exception) -> None:
    memory = Memory(raises={"item": error})

    result = await fetched(memory, **MANUAL)

    assert result is not None
    assert (result.outcome, result.bank_asked) == ("appended", False)


async def test_without_an_answer_about_a_state_that_is_no_good_one_the_pass_fails() -> None:
    memory = Memory(raises={"item": BROKEN})

    result = await fetched(memory, head=msgspec.structs.replace(HEAD, state="login_required"), **MANUAL)

    assert result is not None
    assert (result.outcome, memory.heads) == ("failed", [])


async def test_a_bank_that_is_asked_is_looked_at_once_more_a_few_seconds_later() -> None:
    asked = Memory(bank_item=UPDATED)
    first = await fetched(asked, **REFRESH)
    later = Memory(answers=[PAGE._replace(added=[])])
    second = await fetched(later, **MANUAL)

    assert asked.told == ["item", "refresh"]
    assert first is not None
    assert (first.refreshed, first.due_in_s, first.done) == (True, backoff.REFRESHED_S, True)
    assert second is not None
    assert (later.told, second.refreshed, second.due_in_s) == (["item"], False, None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (refusal("PRODUCTS_NOT_SUPPORTED"), "PRODUCTS_NOT_SUPPORTED"),
        (refusal("INSTITUTION_DOWN", "INSTITUTION_ERROR"), "INSTITUTION_DOWN"),
        (LIMIT, "TRANSACTIONS_REFRESH_LIMIT"),
        (Retry("the quota has nothing", wait_s=40.0), "late"),
    ],
)
async def test_a_bank_that_cannot_be_asked_does_not_cost_the_sync_and_the_attempt_says_so(
    error: Exception, code: str
) -> None:
    memory = Memory(raises={"refresh": error})

    result = await fetched(memory, **REFRESH)

    assert result is not None
    assert (result.outcome, result.refreshed, result.due_in_s, result.attempts) == ("appended", False, None, 0)
    assert result.error is not None
    assert result.error["code"] == code


class Full:
    """Limits with room for the sync, and for nothing beside it."""

    async def take(self, endpoint: str, item_id: str) -> None:
        await asyncio.Event().wait()


async def test_what_the_sync_can_do_without_does_not_hold_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_client, "OPTIONAL_S_MAX", 0.01)
    memory = Memory()

    result = await asyncio.wait_for(fetched(memory, world={"limits": Full()}, **REFRESH), 5)

    assert result is not None
    assert (result.outcome, result.refreshed, result.bank_asked) == ("appended", False, False)
    assert result.error == {
        "code": "late",
        "detail": "transactions/refresh: no answer or no room in the quota within 0.01 s",
    }


async def test_a_login_that_is_broken_is_told_before_a_bank_is_asked_in_vain() -> None:
    known = Memory(raises={"item": refusal("ITEM_LOGIN_REQUIRED")})
    stopped = await fetched(known, **REFRESH)
    unknown = Memory(raises={"refresh": refusal("ITEM_LOGIN_REQUIRED")})
    answered = await fetched(unknown, **REFRESH)

    assert known.told == ["item"]
    for result in (stopped, answered):
        assert result is not None
        assert (result.outcome, result.stopped, result.refreshed) == ("stopped", "login_required", False)


@pytest.mark.parametrize("answer", [Retry("no answer from Plaid"), BROKEN])
async def test_a_bank_that_was_asked_is_not_asked_again_because_the_sync_failed(answer: Any) -> None:
    memory = Memory(answers=[answer])

    result = await fetched(memory, **REFRESH)

    assert result is not None
    assert (result.outcome, result.refreshed, result.due_in_s) == ("failed", True, 1.0)
