"""`tartan chaos --rebuild` finds torn and stale reads, and pushes that are missing or come twice."""

from collections import Counter
from typing import Any

from sandbox.chaos.rebuild.kills import POINTS, REBUILD, Kill, Moment, plan_kills
from sandbox.chaos.rebuild.update_checker import UpdateChecker, update_of_transactions
from sandbox.infra.stack import PROJECTIONS
from sandbox.observe.browsers import Connection, position_gaps
from sandbox.observe.read_load import ACCOUNTS, TRANSACTIONS, MonotonicReads, Read


def page(*updates: tuple[int, str], older: int = 1) -> dict[str, Any]:
    rows = [{"name": f"UPDATE {number}", "amount": amount} for number, amount in updates]
    return {"transactions": [*rows, *({"name": "MERCHANT 1", "amount": "5.00"} for _ in range(older))]}


def test_an_update_is_shown_whole_or_not_at_all() -> None:
    assert update_of_transactions(page()) == (0, [])
    assert update_of_transactions(page((2, "2.1"), (1, "1.20"))) == (2, [])
    assert update_of_transactions(page((9, "9.1"), (8, "8.2"), older=0)) == (9, [])

    for torn in (
        page((2, "2.1"), (1, "1.1")),
        page((2, "2.2"), (1, "1.2")),
        page((3, "3.1"), (1, "1.2")),
        page((3, "3.1"), (2, "2.2")),
        page(older=0),
    ):
        assert update_of_transactions(torn)[1] != []


def test_no_read_shows_less_than_was_read_before_it_began() -> None:
    checker = UpdateChecker()
    of_balance, of_page = Read("ada", ACCOUNTS, ""), Read("ada", TRANSACTIONS, "")
    earlier, _ = checker.begin(of_page), checker.begin(of_balance)(of_balance, accounts("1002"))

    assert earlier(of_page, page((1, "1.1"))) == []
    assert checker.begin(of_page)(of_page, page((1, "1.1"))) == [" shows update 1 after 2 was read"]
    assert checker.begin(of_balance)(of_balance, accounts("1001.00")) == [" shows update 1 after 2 was read"]
    assert checker.begin(of_balance)(of_balance, {"accounts": []}) != []


def accounts(current: str) -> dict[str, Any]:
    return {"accounts": [{"current": current}]}


def test_no_row_goes_back_to_an_older_version() -> None:
    versions, read = MonotonicReads(), Read("ada", TRANSACTIONS, "")

    def answer(version: int) -> dict[str, Any]:
        return {"transactions": [{"id": "t1", "version": version}]}

    assert versions.begin(read)(read, answer(2)) == []
    assert versions.begin(read)(read, answer(2)) == []
    assert versions.begin(read)(read, answer(1)) == [": t1 was version 2 and is 1"]


def test_a_browser_gets_each_message_once_and_in_order_from_its_snapshot() -> None:
    expected = [(3, 0), (5, 0), (5, 1), (8, 0)]

    assert position_gaps([Connection(4, expected[1:])], expected) == []
    assert position_gaps([Connection(0, expected[:1]), Connection(8, expected[3:])], expected) == []
    for wrong in (expected[1:3], [*expected[1:], (8, 0)], [(5, 0), (8, 0)], [(5, 1), (5, 0), (8, 0)]):
        assert len(position_gaps([Connection(4, wrong)], expected)) == 1


def test_a_plan_has_each_moment_in_the_order_of_a_rebuild() -> None:
    for seed in range(20):
        plan = plan_kills(seed=seed, kills=12)

        assert plan == plan_kills(seed=seed, kills=12)
        order = [list(Moment).index(kill.moment) for kill in plan]
        assert order == sorted(order)
        moments = Counter(kill.moment for kill in plan)
        assert moments.keys() == set(Moment)
        assert all(moments[moment] == 1 for moment in POINTS)
        assert {kill.target for kill in plan} == {REBUILD, PROJECTIONS}
    assert str(Kill(Moment.LOAD, 0.25)) == "rebuild: load at 25%"
