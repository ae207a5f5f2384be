"""What is compared with what, when nothing is claimed, and what follows from a gap over time."""

import datetime
from decimal import Decimal
from typing import Any

import pytest

from projections.reconcile import repairs
from projections.reconcile.diagnosis import diagnose
from projections.reconcile.repairs import Policy, Step, step
from projections.reconcile.tie_out import (
    AHEAD_OF_ROWS,
    CONTINUED,
    CURRENCY,
    DUPLICATE_ITEM,
    GAP,
    IN_REVIEW,
    MISSING_ROWS,
    NO_BALANCE,
    NO_FEED,
    NO_OPENING,
    NOT_COMPARABLE,
    PENDING,
    ROWS,
    STALE_BALANCE,
    SYNCING,
    TIED_OUT,
    UNKNOWN,
    UNLINKED,
    Details,
    DuplicateAccount,
    Facts,
    Layers,
    Line,
    Report,
    Verdict,
    compare,
)
from runtime.operators.reconciliations import Open

DAY = datetime.date(2026, 3, 1)
NOW = datetime.datetime(2026, 3, 20, tzinfo=datetime.UTC)
DAY_S = 86_400.0
POLICY = Policy(DAY_S)


def facts(held: str = "100", bank: str | None = "100", **changed: Any) -> Facts:
    """An account that was opened with all that its ledger has, and what its bank reports."""
    balance = Decimal(held)
    usual: dict[str, Any] = {
        "item_id": "item",
        "account_id": "account",
        "type": "depository",
        "ledger": {"USD": Layers(balance)},
        "openings": {"USD": balance},
        "rows": {"USD": Layers()},
        "opened": 3,
        "last_sync_at": 50,
        "reports": () if bank is None else (report(bank),),
    }
    return Facts(**{**usual, **changed})


def report(current: str, **changed: Any) -> Report:
    return Report("cached", Decimal(current), "USD", 9, 20)._replace(**changed)


def line(amount: str, **changed: Any) -> Line:
    return Line("own", Decimal(amount), "USD", False, DAY, 9, 20)._replace(**changed)


def cause(found: Facts, **details: Any) -> Verdict:
    return diagnose(found, Details(**details), compare(found))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (facts(bank="5", opened=None), NO_OPENING),
        (facts(bank="5", is_continued=True), CONTINUED),
        (facts(bank="5", is_unlinked=True), UNLINKED),
        (facts(bank=None), NO_BALANCE),
        (facts(bank="5", type="loan", has_rows=False), NO_FEED),
        (facts(bank="5", type="loan", has_rows=False, opened=None), NO_FEED),
        (facts(reports=(report("5", source="realtime", known_at=60),)), AHEAD_OF_ROWS),
        (facts(bank="5", is_behind=True), SYNCING),
    ],
)
def test_where_nothing_can_be_known_nothing_is_claimed(found: Facts, reason: str) -> None:
    verdict = compare(found)

    assert (verdict.state, verdict.why, verdict.gap) == (NOT_COMPARABLE, reason, 0)


@pytest.mark.parametrize(
    ("bank", "state"), [("100", TIED_OUT), ("100.01", TIED_OUT), ("99.99", TIED_OUT), ("100.011", GAP), ("99.98", GAP)]
)
def test_a_gap_begins_above_a_cent(bank: str, state: str) -> None:
    assert compare(facts(bank=bank)).state == state


def test_what_is_owed_is_negative_in_the_ledger() -> None:
    assert compare(facts("-80", "80", type="credit")).state == TIED_OUT
    assert compare(facts("-80", "90", type="credit")).gap == -10


def test_amounts_of_any_length_are_compared_to_the_last_digit() -> None:
    held = "12345678901234567890123456789.123456789012345678"
    apart = "12345678901234567890123456790.123456789012345678"

    assert compare(facts(held, held)).state == TIED_OUT
    assert compare(facts(held, apart)).gap == 1


def test_one_of_two_balances_is_enough_and_a_real_time_one_waits_for_a_sync() -> None:
    realtime = report("88", source="realtime", known_at=40)

    assert compare(facts(reports=(report("100"), realtime))).state == TIED_OUT
    assert compare(facts(reports=(report("70"), realtime))).gap == -12
    assert compare(facts(reports=(report("70"), realtime), last_sync_at=30)).gap == -30


@pytest.mark.parametrize("layer", ["posted", "pending"])
def test_a_ledger_that_is_not_what_its_rows_say_is_unknown_whatever_the_bank_says(layer: str) -> None:
    found = facts(rows={"USD": Layers()._replace(**{layer: Decimal("0.001")})})

    verdict = diagnose(found, Details(), compare(found))

    assert (verdict.state, verdict.why, verdict.against, verdict.gap) == (GAP, UNKNOWN, ROWS, Decimal("-0.001"))


def test_a_balance_of_another_currency_is_a_gap_even_if_the_numbers_agree() -> None:
    verdict = cause(facts(reports=(report("100", currency="EUR"),)))

    assert (verdict.state, verdict.why) == (GAP, CURRENCY)


def test_a_bank_whose_balance_counts_pending_rows_since_before_the_opening_is_understood() -> None:
    found = facts(
        "60",
        "75",
        ledger={"USD": Layers(Decimal(60), Decimal(-5))},
        openings={"USD": Decimal(60)},
        rows={"USD": Layers(pending=Decimal(5))},
    )

    verdict = cause(found, pending_at_opening=Decimal(-20))

    assert (verdict.why, verdict.evidence["balance"]) == (PENDING, "held_since_opening")


def test_the_banks_own_date_of_a_balance_tells_which_rows_it_has_not() -> None:
    later = line("25", date=DAY + datetime.timedelta(days=2))
    found = facts("75", "100", reports=(report("100", updated_on=DAY),))

    assert cause(found, lines=(line("40"), later)).why == STALE_BALANCE


def test_rows_that_a_review_holds_are_no_gap() -> None:
    verdict = cause(facts(bank="60"), lines=(line("40", in_review=True),))

    assert (verdict.state, verdict.why) == (NOT_COMPARABLE, IN_REVIEW)


def test_a_live_item_with_the_same_account_is_named_unless_the_rules_know_which_one_goes_on() -> None:
    twin = DuplicateAccount("other", "account", False, frozenset())

    assert cause(facts(bank="60"), duplicates=(twin,)).why == DUPLICATE_ITEM
    assert cause(facts(bank="60"), duplicates=(twin._replace(linked=True),)).why == MISSING_ROWS


def test_rows_that_add_up_by_chance_explain_nothing() -> None:
    lines = tuple(line(str(amount), own_id=str(amount)) for amount in range(10, 40))

    verdict = cause(facts(bank="165"), lines=lines)  # hundreds of pairs and triples of these make 65

    assert verdict.why == MISSING_ROWS


def known(reason: str = MISSING_ROWS, repair: str = "compare", *, hours: float = 1.0, **changed: Any) -> Open:
    """A discrepancy of 5 that has been open for some hours, its repair done."""
    since = NOW - datetime.timedelta(hours=hours)
    return Open(1, reason, Decimal(5), since, since, repair, since, 0, None, True)._replace(**changed)


def gap(reason: str = MISSING_ROWS, amount: str = "5") -> Verdict:
    return Verdict(GAP, reason, gap=Decimal(amount))


@pytest.mark.parametrize(("reason", "repair"), sorted(repairs.REPAIRS.items()))
def test_each_cause_has_its_repair_and_nobody_is_told_at_once(reason: str, repair: str) -> None:
    first = step(gap(reason), None, POLICY, NOW)

    assert first == Step("open", reason, repair, start=repair in ("sync", "compare"))


def test_people_are_told_at_the_third_check_after_a_comparison_that_did_not_help() -> None:
    told = [step(gap(), known(checks_after=after), POLICY, NOW).alert for after in range(4)]
    waiting = step(gap(), known(checks_after=2, repair_done=False), POLICY, NOW)

    assert told == [False, False, True, True]
    assert (waiting.alert, waiting.checks_after) == (False, 2)


@pytest.mark.parametrize("reason", [STALE_BALANCE, MISSING_ROWS])
def test_people_are_told_of_what_lasts_whatever_became_of_the_repair(reason: str) -> None:
    repair = repairs.REPAIRS[reason]

    assert not step(gap(reason), known(reason, repair, hours=23, repair_done=False), POLICY, NOW).alert
    assert step(gap(reason), known(reason, repair, hours=25, repair_done=False), POLICY, NOW).alert


def test_pending_rows_are_told_of_only_where_the_same_gap_outlasts_them() -> None:
    days = 24.0 * 13

    assert not step(gap(PENDING), known(PENDING, "wait", hours=days), POLICY, NOW).alert
    assert not step(gap(PENDING, "6"), known(PENDING, "wait", hours=days + 48), POLICY, NOW).alert
    assert step(gap(PENDING), known(PENDING, "wait", hours=days + 48), POLICY, NOW).alert


def test_a_sync_is_asked_for_once_a_day_and_a_comparison_once_a_day_for_all_accounts_of_an_item() -> None:
    assert not step(gap(STALE_BALANCE), known(STALE_BALANCE, "sync", hours=23), POLICY, NOW).start
    assert step(gap(STALE_BALANCE), known(STALE_BALANCE, "sync", hours=25), POLICY, NOW).start
    compared_at = NOW - datetime.timedelta(hours=23)
    assert not step(gap(), None, POLICY._replace(compared_at=compared_at), NOW).start
    assert step(gap(), None, POLICY._replace(compared_at=compared_at - datetime.timedelta(hours=2)), NOW).start


def test_rows_that_come_later_and_add_up_to_an_old_gap_are_not_its_cause() -> None:
    same, other = step(gap(PENDING), known(), POLICY, NOW), step(gap(PENDING, "7"), known(), POLICY, NOW)

    assert (same.cause, other.cause) == (MISSING_ROWS, PENDING)


@pytest.mark.parametrize(
    ("verdict", "repaired_at", "outcome"),
    [
        (Verdict(TIED_OUT), NOW, "repaired"),
        (Verdict(TIED_OUT), None, "resolved"),
        (Verdict(NOT_COMPARABLE, UNLINKED), NOW, "withdrawn"),
    ],
)
def test_a_discrepancy_ends_with_what_came_of_it(
    verdict: Verdict, repaired_at: datetime.datetime | None, outcome: str
) -> None:
    ended = step(verdict, known(repaired_at=repaired_at), POLICY, NOW)

    assert (ended.act, ended.outcome) == ("close", outcome)


@pytest.mark.parametrize("reason", [AHEAD_OF_ROWS, IN_REVIEW, SYNCING])
def test_what_cannot_be_told_for_now_leaves_a_discrepancy_as_it_is(reason: str) -> None:
    kept = step(Verdict(NOT_COMPARABLE, reason), known(outcome="persists"), POLICY, NOW)

    assert (kept.act, kept.cause, kept.outcome, kept.alert) == ("nothing", MISSING_ROWS, "persists", False)
