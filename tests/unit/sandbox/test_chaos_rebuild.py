"""`tartan chaos --rebuild` finds what it looks for: torn and stale reads, pushes that are missing or come twice."""

from collections import Counter
from typing import Any

from sandbox.chaos.rebuild.kills import POINTS, REBUILD, Kill, Moment, planned
from sandbox.chaos.rebuild.update_checker import UpdateChecker, of_transactions
from sandbox.infra.stack import PROJECTIONS
from sandbox.observe.listeners import Connection, missed
from sandbox.observe.read_load import ACCOUNTS, TRANSACTIONS, MonotonicReads, Read


def page(*updates: tuple[int, str], older: int = 1) -> dict[str, Any]:
    rows = [{"name": f"UPDATE {number}", "amount": amount} for number, amount in updates]
    return {"transactions": [*rows, *({"name": "MERCHANT 1", "amount": "5.00"} for _ in range(older))]}


def test_an_update_is_shown_whole_or_not_at_all() -> None:
    assert of_transactions(page()) == (0, [])
    assert of_transactions(page((2, "2.1"), (1, "1.20"))) == (2, [])
    assert of_transactions(page((9, "9.1"), (8, "8.2"), older=0)) == (9, [])

    for torn in (
        page((2, "2.1"), (1, "1.1")),
        page((2, "2.2"), (1, "1.2")),
        page((3, "3.1"), (1, "1.2")),
        page((3, "3.1"), (2, "2.2")),
        page(older=0),
    ):
        assert of_transactions(torn)[1] != []


def test_no_read_shows_less_than_was_read_before_it_began() -> None:
    consistency = UpdateChecker()
    of_balance, of_page = Read("ada", ACCOUNTS, ""), Read("ada", TRANSACTIONS, "")
    earlier, _ = consistency.begun(of_page), consistency.begun(of_balance)(of_balance, accounts("1002"))

    assert earlier(of_page, page((1, "1.1"))) == []
    assert consistency.begun(of_page)(of_page, page((1, "1.1"))) == [" shows update 1 after 2 was read"]
    assert consistency.begun(of_balance)(of_balance, accounts("1001.00")) == [" shows update 1 after 2 was read"]
    assert consistency.begun(of_balance)(of_balance, {"accounts": []}) != []


def accounts(current: str) -> dict[str, Any]:
    return {"accounts": [{"current": current}]}


def test_no_row_goes_back_to_an_older_version() -> None:
    versions, read = MonotonicReads(), Read("ada", TRANSACTIONS, "")

    def told(version: int) -> dict[str, Any]:
        return {"transactions": [{"id": "t1", "version": version}]}

    assert versions.begun(read)(read, told(2)) == []
    assert versions.begun(read)(read, told(2)) == []
    assert versions.begun(read)(read, told(1)) == [": t1 was version 2 and is 1"]


def test_a_browser_is_told_all_once_and_in_order_from_where_it_began() -> None:
    wanted = [(3, 0), (5, 0), (5, 1), (8, 0)]

    assert missed([Connection(4, wanted[1:])], wanted) == []
    assert missed([Connection(0, wanted[:1]), Connection(8, wanted[3:])], wanted) == []
    for wrong in (wanted[1:3], [*wanted[1:], (8, 0)], [(5, 0), (8, 0)], [(5, 1), (5, 0), (8, 0)]):
        assert len(missed([Connection(4, wrong)], wanted)) == 1


def test_a_plan_has_each_moment_in_the_order_of_a_rebuild() -> None:
    for seed in range(20):
        plan = planned(seed=seed, kills=12)

        assert plan == planned(seed=seed, kills=12)
        order = [list(Moment).index(kill.moment) for kill in plan]
        assert order == sorted(order)
        found = Counter(kill.moment for kill in plan)
        assert found.keys() == set(Moment)
        assert all(found[moment] == 1 for moment in POINTS)
        assert {kill.victim for kill in plan} == {REBUILD, PROJECTIONS}
    assert str(Kill(Moment.LOAD, 0.25)) == "rebuild: load at 25%"
