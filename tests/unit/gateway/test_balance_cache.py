"""Accounts are kept for a bounded time, in a bounded number, and only while nothing came of their user."""

from typing import Any

from gateway.handlers.balances.balance_cache import AccountsCache

KEPT_S = 30.0


class Tables:
    """Accounts of users, their last positions, and how often they were read."""

    def __init__(self, *, accounts_max: int = 100) -> None:
        self.now = 0.0
        self.position: int | None = 7
        self.reads = 0
        self.cache = AccountsCache(ttl_s=KEPT_S, accounts_max=accounts_max, clock=lambda: self.now)

    async def _read(self) -> list[dict[str, Any]]:
        self.reads += 1
        return [{"current": str(self.reads)}]

    async def shown(self, user: int = 1) -> str:
        [account] = await self.cache.of(user, self.position, self._read)
        return str(account["current"])


async def test_accounts_are_read_once_while_nothing_came() -> None:
    tables = Tables()

    assert [await tables.shown() for _ in range(3)] == ["1", "1", "1"]


async def test_a_record_of_the_user_ends_what_is_kept_at_once() -> None:
    tables = Tables()
    await tables.shown()

    tables.position = 8

    assert await tables.shown() == "2"


async def test_a_position_that_went_back_ends_it_too() -> None:
    tables = Tables()
    await tables.shown()

    tables.position = 6

    assert await tables.shown() == "2"


async def test_accounts_are_read_again_after_their_time() -> None:
    tables = Tables()
    await tables.shown()

    tables.now = KEPT_S - 0.1
    assert await tables.shown() == "1"
    tables.now = KEPT_S
    assert await tables.shown() == "2"


async def test_a_user_of_whom_nothing_is_shown_is_not_kept() -> None:
    tables = Tables()
    tables.position = None

    assert [await tables.shown(), await tables.shown()] == ["1", "2"]


async def test_users_do_not_see_each_other() -> None:
    tables = Tables()

    assert [await tables.shown(1), await tables.shown(2), await tables.shown(1)] == ["1", "2", "1"]


async def test_the_least_recently_used_goes_first() -> None:
    tables = Tables(accounts_max=4)  # two users with one account each
    await tables.shown(1)
    await tables.shown(2)
    await tables.shown(1)

    await tables.shown(3)

    assert [await tables.shown(1), await tables.shown(3), await tables.shown(2)] == ["1", "3", "4"]
