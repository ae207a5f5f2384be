"""Plaid's quotas: what is read of the setting, and that no minute of Plaid's holds more than its limit."""

from bisect import bisect_left
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import plaid_limits
from runtime.plaid_limits import Limit
from runtime.scheduler import quotas
from runtime.scheduler.quotas import DELAY_S_MAX, MINUTE_S, Pace
from schemas.errors import Halt

LIMITS = st.integers(min_value=1, max_value=60)
GAPS_S = st.lists(st.floats(min_value=0, max_value=40) | st.just(0.0), min_size=1, max_size=120)
DELAYS_S = st.lists(st.floats(min_value=0, max_value=DELAY_S_MAX), min_size=1, max_size=40)


def most_in_a_minute(times: Iterable[float]) -> int:
    """The most that any sliding minute holds."""
    ordered = sorted(times)
    return max((bisect_left(ordered, at + MINUTE_S) - place for place, at in enumerate(ordered)), default=0)


def let_through(gaps_s: list[float], paces: list[Pace], *, patient: bool) -> list[float]:
    """When requests get their tokens of all buckets. The patient ones come again as soon as they may."""
    now_s, tat_s, times = 0.0, [0.0] * len(paces), []
    for gap_s in gaps_s:
        now_s += gap_s
        spent = [quotas.take_token(full, now_s, pace) for full, pace in zip(tat_s, paces, strict=True)]
        while patient and (wait_s := max(one.wait_s for one in spent)) > 0:
            now_s += wait_s
            spent = [quotas.take_token(full, now_s, pace) for full, pace in zip(tat_s, paces, strict=True)]
        if max(one.wait_s for one in spent) <= 0:
            tat_s = [one.tat_s for one in spent]
            times.append(now_s)
    return times


@given(item=LIMITS, client=LIMITS, gaps_s=GAPS_S, delays_s=DELAYS_S, patient=st.booleans())
def test_no_minute_of_plaids_holds_more_than_the_limit_however_requests_come_and_travel(
    item: int, client: int, gaps_s: list[float], delays_s: list[float], patient: bool
) -> None:
    limit = Limit(item, client)
    paces = [quotas.item_pace(limit), quotas.client_pace(limit)]

    sent = let_through(gaps_s, paces, patient=patient)

    arrived = [at + delays_s[place % len(delays_s)] for place, at in enumerate(sent)]
    assert most_in_a_minute(arrived) <= min(item, client)


@pytest.mark.parametrize("limit", [Limit(50, 2_500), Limit(15, 5_000), Limit(2, 100), Limit(1, 1)])
def test_requests_that_bunch_up_on_their_way_to_plaid_stay_within_the_limit(limit: Limit) -> None:
    for pace, most in ((quotas.item_pace(limit), limit.item), (quotas.client_pace(limit), limit.client)):
        sent = let_through([0.0] * (3 * most), [pace], patient=True)
        # The worst way: the first ones take as long as they may, and the later ones no time at all.
        arrived = [max(at, DELAY_S_MAX) for at in sent]

        assert most_in_a_minute(arrived) <= most


@pytest.mark.parametrize("limit", [Limit(50, 2_500), Limit(15, 5_000)])
def test_the_margin_leaves_most_of_a_quota_to_use(limit: Limit) -> None:
    item = let_through([0.0] * 10 * limit.item, [quotas.item_pace(limit)], patient=True)
    client = let_through([0.0] * 3 * limit.client, [quotas.client_pace(limit)], patient=True)

    assert sum(at < MINUTE_S for at in item) >= 0.9 * limit.item
    assert sum(at < MINUTE_S for at in client) >= 0.9 * limit.client
    assert sum(MINUTE_S <= at < 2 * MINUTE_S for at in client) >= 0.8 * limit.client


def test_passes_under_way_find_tokens_however_many_claims_wait_for_one() -> None:
    """Claims look every 10 ms and take all that they may; a pass looks for its next page every 2 s."""
    limit = Limit(50, 2_500)
    claims, passes = quotas.claim_pace(limit), quotas.client_pace(limit)
    tat_s, claimed, found = 0.0, 0, []

    for tick in range(6_000):
        now_s = tick / 100
        while (one := quotas.take_token(tat_s, now_s, claims)).wait_s == 0:
            tat_s, claimed = one.tat_s, claimed + 1
        if tick % 200 == 0:
            one = quotas.take_token(tat_s, now_s, passes)
            tat_s = one.tat_s
            found.append(one.wait_s == 0)

    assert all(found)
    assert 0.8 * limit.client < claimed + len(found) <= limit.client


def test_a_share_of_the_clients_quota_is_used_evenly() -> None:
    pace = quotas.client_share(Limit(15, 5_000), 0.1, burst_s=2.0)

    times = let_through([0.0] * 1_000, [pace], patient=True)

    assert sum(at < MINUTE_S for at in times) <= 500
    assert sum(at < 1.0 for at in times) <= 26


def test_a_plan_is_read_with_its_changes() -> None:
    found = plaid_limits.parse("production, /transactions/sync=100/5000", environment="sandbox")

    assert found[plaid_limits.SYNC] == Limit(100, 5_000)
    assert found[plaid_limits.ITEM] == plaid_limits.PLANS["production"][plaid_limits.ITEM]


def test_without_a_plan_that_of_the_environment_holds() -> None:
    assert plaid_limits.parse("", environment="sandbox") == plaid_limits.PLANS["sandbox"]
    assert plaid_limits.parse("off", environment="production") == {}


@pytest.mark.parametrize("text", ["gold", "sandbox,transactions/sync=1", "sandbox,transactions/sync=0/5"])
def test_what_is_no_quota_is_refused_by_name(text: str) -> None:
    with pytest.raises(Halt, match="TARTAN_PLAID_LIMITS"):
        plaid_limits.parse(text, environment="sandbox")
