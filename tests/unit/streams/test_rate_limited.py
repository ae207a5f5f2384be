"""A pass asks Plaid within its limits, and tells what concerns others."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from runtime import plaid_limits
from runtime.plaid.client import PlaidRefused
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import NOT_READY, AccountsAnswer, SyncPage
from runtime.scheduler import quotas
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from schemas.log.records import Cause
from streams.limits.rate_limited import RateLimitedPlaid
from streams.ports import LeaseLost

PAGE = SyncPage([], [], [], [], "cursor", False, "HISTORICAL_UPDATE_COMPLETE", "request")
STATE = ItemAnswer("item", "ins_1", None, None, None, None, None, None, None, None, None, None, None)


class Plaid:
    """A bank that answers everything, or refuses everything."""

    def __init__(self, *, refusal: Exception | None = None, page: SyncPage = PAGE) -> None:
        self.asked: list[str] = []
        self._refusal = refusal
        self._page = page

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        self._ask(plaid_limits.SYNC)
        return self._page

    async def accounts(self, token: str) -> AccountsAnswer:
        self._ask(plaid_limits.ACCOUNTS)
        return AccountsAnswer([], None)

    async def item(self, token: str) -> ItemAnswer:
        self._ask(plaid_limits.ITEM)
        return STATE

    async def refresh(self, token: str) -> None:
        self._ask(plaid_limits.REFRESH)

    async def remove(self, token: str) -> None:
        self._ask(plaid_limits.REMOVE)

    def _ask(self, endpoint: str) -> None:
        self.asked.append(endpoint)
        if self._refusal is not None:
            raise self._refusal


class Limits:
    """Remembers what it was told."""

    def __init__(self, *, away: bool = False, on_take: Callable[[], None] = lambda: None) -> None:
        self.taken: list[tuple[str, str]] = []
        self.told: list[tuple[str, ...]] = []
        self._away = away
        self._on_take = on_take

    async def take(self, endpoint: str, item_id: str) -> None:
        self._on_take()
        self.taken.append((endpoint, item_id))

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        self._tell("exceeded", endpoint, item_id, error_code)

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        self._tell("failed", institution_id, error_code)

    async def institution_answered(self, institution_id: str) -> None:
        self._tell("answered", institution_id)

    def _tell(self, *call: str) -> None:
        self.told.append(call)
        if self._away:
            raise Retry("Postgres is away")


def claimed(**fields: Any) -> Claimed:
    """An Item under a lease."""
    given = {
        "item_id": "item",
        "tenant": "t",
        "user": 1,
        "partition": 0,
        "institution_id": "ins_1",
        "institution_name": "Bank",
        "sealed_token": b"",
        "lease": b"lease",
        "expired": False,
        "generation": 1,
        "lane": 0,
        "cause": Cause("webhook"),
        "unlink_requested": False,
        "accounts_wanted": False,
        "accounts_at": None,
        "attempts": 0,
        "not_ready": 0,
        "head": None,
        "hints": (),
    }
    return Claimed(**{**given, **fields})


def limited(
    plaid: Plaid, limits: Limits, *, is_live: Callable[[], bool] = lambda: True, **fields: Any
) -> RateLimitedPlaid:
    """Plaid for a pass."""
    return RateLimitedPlaid(plaid, limits, claimed(**fields), is_live=is_live)


def refused(error_type: str, error_code: str) -> PlaidRefused:
    """An error of Plaid's."""
    return PlaidRefused(error_type=error_type, error_code=error_code, status=400, request_id="r")


async def test_the_claim_paid_for_the_first_page_and_the_pass_pays_for_all_else() -> None:
    plaid, limits = Plaid(), Limits()
    bank = limited(plaid, limits)

    await bank.sync_page("token", None)
    await bank.sync_page("token", "cursor")
    await bank.accounts("token")
    await bank.item("token")
    await bank.refresh("token")
    await bank.remove("token")

    endpoints = [plaid_limits.SYNC, plaid_limits.ACCOUNTS, plaid_limits.ITEM, plaid_limits.REFRESH, plaid_limits.REMOVE]
    assert limits.taken == [(endpoint, "item") for endpoint in endpoints]
    assert plaid.asked == [plaid_limits.SYNC, *endpoints]


async def test_what_the_claim_paid_is_not_kept_for_another_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits()
    bank = limited(Plaid(), limits)
    loop = asyncio.get_running_loop()
    later_s = loop.time() + quotas.DELAY_S_MAX + 0.1

    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: later_s)
        await bank.sync_page("token", None)

    assert limits.taken == [(plaid_limits.SYNC, "item")]


async def test_what_was_claimed_long_before_the_pass_began_is_paid_again() -> None:
    limits = Limits()

    for seconds in (quotas.DELAY_S_MAX - 1, quotas.DELAY_S_MAX + 1):
        bank = RateLimitedPlaid(Plaid(), limits, claimed(), is_live=lambda: True, claimed_s_ago=seconds)
        await bank.sync_page("token", None)

    assert limits.taken == [(plaid_limits.SYNC, "item")]


async def test_a_pass_that_nobody_paid_for_pays_for_its_first_page() -> None:
    limits = Limits()

    await RateLimitedPlaid(Plaid(), limits, claimed(), is_live=lambda: True, claimed_s_ago=3600.0).sync_page(
        "token", None
    )

    assert limits.taken == [(plaid_limits.SYNC, "item")]


async def test_who_lost_the_lease_asks_nothing_and_takes_no_tokens() -> None:
    plaid, limits = Plaid(), Limits()
    bank = limited(plaid, limits, is_live=lambda: False)

    for asking in (bank.sync_page("token", None), bank.accounts("token"), bank.remove("token")):
        with pytest.raises(LeaseLost):
            await asking

    assert (plaid.asked, limits.taken) == ([], [])


async def test_a_lease_that_ends_while_tokens_are_waited_for_ends_the_pass() -> None:
    alive = [True]
    plaid, limits = Plaid(), Limits(on_take=alive.clear)
    bank = limited(plaid, limits, is_live=lambda: bool(alive))

    with pytest.raises(LeaseLost):
        await bank.accounts("token")

    assert plaid.asked == []


@pytest.mark.parametrize("code", ["TRANSACTIONS_SYNC_LIMIT", "RATE_LIMIT", "INSTITUTION_RATE_LIMIT"])
async def test_a_429_is_told_to_the_quotas_and_to_the_pass(code: str) -> None:
    limits = Limits()
    bank = limited(Plaid(refusal=refused("RATE_LIMIT_EXCEEDED", code)), limits, bank_failing=True)

    with pytest.raises(PlaidRefused, match=code):
        await bank.sync_page("token", None)

    assert limits.told == [("exceeded", plaid_limits.SYNC, "item", code)]


@pytest.mark.parametrize("code", ["INSTITUTION_DOWN", "INSTITUTION_NOT_RESPONDING", "INSTITUTION_NOT_AVAILABLE"])
async def test_an_outage_is_told_to_the_banks_breaker(code: str) -> None:
    limits = Limits()
    bank = limited(Plaid(refusal=refused("INSTITUTION_ERROR", code)), limits)

    with pytest.raises(PlaidRefused, match=code):
        await bank.accounts("token")

    assert limits.told == [("failed", "ins_1", code)]


async def test_an_outage_of_an_unknown_bank_is_told_to_nobody() -> None:
    limits = Limits()
    bank = limited(Plaid(refusal=refused("INSTITUTION_ERROR", "INSTITUTION_DOWN")), limits, institution_id=None)

    with pytest.raises(PlaidRefused):
        await bank.accounts("token")

    assert limits.told == []


async def test_that_a_failing_bank_answered_is_told_once() -> None:
    limits = Limits()
    bank = limited(Plaid(), limits, bank_failing=True)

    await bank.accounts("token")
    await bank.sync_page("token", None)
    await bank.sync_page("token", "cursor")

    assert limits.told == [("answered", "ins_1")]


async def test_that_a_bank_answers_as_ever_is_no_news() -> None:
    limits = Limits()
    bank = limited(Plaid(), limits)

    await bank.accounts("token")
    await bank.sync_page("token", None)

    assert limits.told == []


async def test_what_plaid_answers_without_its_bank_does_not_close_the_breaker() -> None:
    limits = Limits()
    bank = limited(Plaid(page=PAGE._replace(status=NOT_READY)), limits, bank_failing=True)

    await bank.sync_page("token", None)
    await bank.item("token")
    await bank.refresh("token")
    await bank.remove("token")

    assert limits.told == []


@pytest.mark.parametrize(
    ("error_type", "code", "reports"),
    [
        ("ITEM_ERROR", "ITEM_LOGIN_REQUIRED", [("answered", "ins_1")]),
        ("API_ERROR", "INTERNAL_SERVER_ERROR", []),
        ("API_ERROR", "PLANNED_MAINTENANCE", []),
        ("INVALID_INPUT", "INVALID_API_KEYS", []),
        ("ITEM_ERROR", "ITEM_NOT_FOUND", []),
        ("TRANSACTIONS_ERROR", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION", []),
    ],
)
async def test_a_refusal_closes_the_breaker_only_where_the_bank_itself_gave_it(
    error_type: str, code: str, reports: list[tuple[str, ...]]
) -> None:
    limits = Limits()
    bank = limited(Plaid(refusal=refused(error_type, code)), limits, bank_failing=True)

    with pytest.raises(PlaidRefused, match=code):
        await bank.sync_page("token", None)

    assert limits.told == reports


async def test_no_answer_is_told_to_nobody() -> None:
    limits = Limits()
    bank = limited(Plaid(refusal=Retry("no answer from Plaid")), limits, bank_failing=True)

    with pytest.raises(Retry, match="no answer"):
        await bank.sync_page("token", None)

    assert limits.told == []


@pytest.mark.parametrize("code", ["RATE_LIMIT", "INSTITUTION_DOWN", "ITEM_LOGIN_REQUIRED"])
async def test_plaids_refusal_reaches_the_pass_although_nobody_can_be_told(code: str) -> None:
    bank = limited(Plaid(refusal=refused("SOME_ERROR", code)), Limits(away=True), bank_failing=True)

    with pytest.raises(PlaidRefused, match=code):
        await bank.sync_page("token", None)


async def test_plaids_answer_reaches_the_pass_although_nobody_can_be_told() -> None:
    bank = limited(Plaid(), Limits(away=True), bank_failing=True)

    assert await bank.sync_page("token", None) == PAGE
