"""The key cache asks Plaid once a key, follows rotations, and lets no stranger spend our calls."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from ingest.app import fetch_key
from ingest.keys import FRESH_S, KEPT_S_MAX, REFUSED_MAX, REFUSED_S, RETRY_S, UNKNOWN_PER_MINUTE_MAX, KeyCache
from ingest.refusals import Reason, WebhookRefused
from runtime.plaid.client import Plaid, PlaidRefused
from sandbox.simulator.api.signing import Keyring
from schemas.errors import Retry

NOW = datetime(2026, 9, 21, tzinfo=UTC)


class Bank:
    """Plaid's side of the keys: counts what it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.keyring = Keyring(7, NOW)
        self.asked: list[str] = []
        self.away = False
        self.open = asyncio.Event()
        self.open.set()
        self.now = 0.0
        self.cache = KeyCache(self.fetch, clock=lambda: self.now)

    async def fetch(self, key_id: str) -> bytes | None:
        self.asked.append(key_id)
        await self.open.wait()
        if self.away:
            raise Retry("no answer")
        key = self.keyring.keys.get(key_id)
        return None if key is None else json.dumps(key.jwk()).encode()

    def rotate(self, *, expire_old: bool) -> str:
        return self.keyring.rotate(NOW, expire_old=expire_old).kid

    async def refused(self, key_id: str) -> Reason:
        with pytest.raises(WebhookRefused) as refused:
            await self.cache.get(key_id)
        return refused.value.reason

    async def settled(self) -> None:
        """Wait until nothing is being asked any more."""
        async with asyncio.timeout(5):
            while self.cache._requests:
                await asyncio.sleep(0)


async def test_a_hundred_webhooks_at_once_ask_for_their_key_once() -> None:
    bank = Bank()
    bank.open.clear()
    waiting = [asyncio.create_task(bank.cache.get(bank.keyring.current.kid)) for _ in range(100)]
    await asyncio.sleep(0)

    bank.open.set()
    keys = await asyncio.gather(*waiting)

    assert bank.asked == [bank.keyring.current.kid]
    assert {key.key_id for key in keys} == {bank.keyring.current.kid}


async def test_a_waiter_that_gives_up_spoils_nothing_for_the_others() -> None:
    bank = Bank()
    bank.open.clear()
    first = asyncio.create_task(bank.cache.get(bank.keyring.current.kid))
    second = asyncio.create_task(bank.cache.get(bank.keyring.current.kid))
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.sleep(0)
    bank.open.set()

    assert (await second).key_id == bank.keyring.current.kid
    assert len(bank.asked) == 1


async def test_a_new_key_makes_the_cached_ones_be_asked_for_again_and_ended_ones_are_refused() -> None:
    bank = Bank()
    old = bank.keyring.current.kid
    await bank.cache.get(old)

    new = bank.rotate(expire_old=True)
    await bank.cache.get(new)
    await bank.settled()

    assert bank.asked == [old, new, old]
    assert await bank.refused(old) is Reason.KEY_EXPIRED
    assert bank.asked == [old, new, old]


async def test_after_a_rotation_that_keeps_the_old_key_both_serve() -> None:
    bank = Bank()
    old = bank.keyring.current.kid
    await bank.cache.get(old)

    new = bank.rotate(expire_old=False)
    await bank.cache.get(new)
    await bank.settled()

    assert (await bank.cache.get(old)).key_id == old
    assert (await bank.cache.get(new)).key_id == new


async def test_a_key_that_ended_is_noticed_within_its_hour_even_without_a_new_one() -> None:
    bank = Bank()
    key_id = bank.keyring.current.kid
    await bank.cache.get(key_id)
    bank.keyring.current.expired_at = 1

    bank.now = FRESH_S - 1
    assert (await bank.cache.get(key_id)).key_id == key_id
    bank.now = FRESH_S

    assert await bank.refused(key_id) is Reason.KEY_EXPIRED


async def test_an_unknown_key_id_is_asked_for_once_in_five_minutes() -> None:
    bank = Bank()

    assert [await bank.refused("stranger") for _ in range(10)] == [Reason.KEY_UNKNOWN] * 10
    assert bank.asked == ["stranger"]
    bank.now = REFUSED_S
    await bank.refused("stranger")

    assert bank.asked == ["stranger"] * 2


async def test_a_flood_of_unknown_key_ids_spends_a_budget_and_not_plaids_patience() -> None:
    bank = Bank()
    known = bank.keyring.current.kid
    await bank.cache.get(known)

    for number in range(UNKNOWN_PER_MINUTE_MAX - 1):
        await bank.refused(f"stranger-{number}")
    with pytest.raises(Retry) as retry:
        await bank.cache.get("one-too-many")

    assert len(bank.asked) == UNKNOWN_PER_MINUTE_MAX
    assert retry.value.wait_s == 60.0
    assert (await bank.cache.get(known)).key_id == known
    bank.now = 60.0
    assert await bank.refused("one-too-many") is Reason.KEY_UNKNOWN


async def test_while_plaid_does_not_answer_a_known_key_serves_for_a_day_and_an_unknown_one_is_nobodys_fault() -> None:
    bank = Bank()
    key_id = bank.keyring.current.kid
    await bank.cache.get(key_id)
    bank.away = True

    bank.now = FRESH_S
    assert (await bank.cache.get(key_id)).key_id == key_id
    assert (await bank.cache.get(key_id)).key_id == key_id
    assert bank.asked == [key_id] * 2
    bank.now = FRESH_S + RETRY_S
    assert (await bank.cache.get(key_id)).key_id == key_id
    assert bank.asked == [key_id] * 3

    bank.now = KEPT_S_MAX + RETRY_S
    with pytest.raises(Retry):
        await bank.cache.get(key_id)
    with pytest.raises(Retry):
        await bank.cache.get("never-seen")
    bank.away = False
    assert (await bank.cache.get(key_id)).key_id == key_id


async def test_refused_ids_are_forgotten_beyond_their_bound() -> None:
    bank = Bank()
    for number in range(REFUSED_MAX + 1):
        bank.now += 60.0 / UNKNOWN_PER_MINUTE_MAX
        await bank.refused(f"stranger-{number}")

    assert len(bank.cache._refused) == REFUSED_MAX


async def test_a_close_ends_what_is_being_asked() -> None:
    bank = Bank()
    bank.open.clear()
    waiting = asyncio.create_task(bank.cache.get("any"))
    await asyncio.sleep(0)

    await bank.cache.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_only_plaids_word_on_the_key_id_makes_it_unknown() -> None:
    class Refusing(Plaid):
        def __init__(self, code: str) -> None:
            self.code = code

        async def verification_key(self, key_id: str) -> bytes:
            raise PlaidRefused(error_type="INVALID_INPUT", error_code=self.code, status=400, request_id=None)

    assert await fetch_key(Refusing("INVALID_WEBHOOK_VERIFICATION_KEY_ID"))("k") is None
    with pytest.raises(Retry, match="INVALID_API_KEYS"):
        await fetch_key(Refusing("INVALID_API_KEYS"))("k")
