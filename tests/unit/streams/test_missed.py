"""What /item/get says of webhooks, compared with what came."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from runtime.plaid.item_models import ItemAnswer
from streams.webhooks import missed
from streams.webhooks.missed import ERROR, GRACE_S, REPAIR, UPDATE, WEBHOOK, WINDOW_S, WINDOWS, Finding, Loss, SweptItem

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
NOTHING = Finding()
RECEIVED = Finding(sent=True)
MISSED = Finding(sent=True, missed=True, reason=WEBHOOK)
SYNC = "SYNC_UPDATES_AVAILABLE"


def ago(seconds: float) -> datetime:
    """A moment before now."""
    return NOW - timedelta(seconds=seconds)


def plaids(seconds: float) -> str:
    """The same as Plaid writes it."""
    return ago(seconds).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def item(**fields: Any) -> SweptItem:
    """An Item of yesterday that was synced ten minutes ago, and was never swept."""
    given: dict[str, Any] = {
        "item_id": "item",
        "sealed_token": b"",
        "at": NOW,
        "swept_before": None,
        "created_at": ago(86_400),
        "last_webhook_at": None,
        "last_attempt_at": ago(600),
        "due_at": None,
        "stopped": None,
        "has_history": True,
    }
    return SweptItem(**{**given, **fields})


def said(**fields: Any) -> ItemAnswer:
    """What Plaid says: by itself, nothing."""
    return ItemAnswer(**(dict.fromkeys(ItemAnswer._fields) | {"item_id": "item"} | fields))


def webhook(seconds: float, code: str = SYNC, **fields: Any) -> ItemAnswer:
    """What Plaid says after it sent a webhook so long ago."""
    return said(last_webhook_at=plaids(seconds), last_webhook_code=code, **fields)


def test_a_webhook_that_did_not_come_is_missed_and_makes_the_item_due() -> None:
    assert missed.check(item(), webhook(300)) == MISSED


def test_a_webhook_that_came_is_counted_and_causes_nothing() -> None:
    assert missed.check(item(last_webhook_at=ago(299), last_attempt_at=ago(298)), webhook(300)) == RECEIVED


def test_a_webhook_that_came_by_a_clock_a_little_behind_plaids_is_not_missed() -> None:
    assert missed.check(item(last_webhook_at=ago(301.5)), webhook(300)) == RECEIVED


def test_a_webhook_that_did_not_come_is_not_mistaken_for_the_one_before_it() -> None:
    assert missed.check(item(last_webhook_at=ago(700)), webhook(300)) == MISSED


def test_a_webhook_that_may_still_be_on_its_way_is_left_for_the_next_look() -> None:
    assert missed.check(item(), webhook(GRACE_S - 1)) == NOTHING


@pytest.mark.parametrize("since_former_s", [10.0, 100.0, 300.0, 3_400.0])
def test_a_webhook_counts_at_exactly_one_look(since_former_s: float) -> None:
    """Looks at fixed distances, one after another, about webhooks of every age."""
    for sent_s in range(0, 3_000, 97):
        looks = [timedelta(seconds=since_former_s * number) for number in range(1, int(3_500 / since_former_s) + 2)]
        answer = said(last_webhook_at=(NOW + timedelta(seconds=sent_s)).isoformat(), last_webhook_code=SYNC)

        findings = [
            missed.check(item(at=NOW + look, swept_before=NOW + before, last_attempt_at=None), answer)
            for before, look in zip([timedelta(), *looks], looks, strict=False)
        ]

        assert sum(finding.sent for finding in findings) == 1
        assert sum(finding.missed for finding in findings) == 1


def test_a_missed_webhook_that_counted_already_still_makes_the_item_due() -> None:
    """The process that counted it may have died before its mark."""
    finding = missed.check(item(swept_before=ago(60)), webhook(300))

    assert finding == Finding(sent=False, missed=False, reason=WEBHOOK)


@pytest.mark.parametrize(
    "fields",
    [{"last_attempt_at": ago(100)}, {"last_attempt_at": ago(100), "due_at": ago(-3_600)}, {"due_at": ago(1)}],
    ids=["a pass looked since", "a pass failed since and is tried again", "it is due"],
)
def test_a_missed_webhook_that_the_schedule_made_good_counts_and_causes_nothing(fields: dict[str, Any]) -> None:
    assert missed.check(item(**fields), webhook(300)) == Finding(sent=True, missed=True)


def test_a_missed_webhook_ends_the_wait_of_an_item_that_failed_before_it() -> None:
    assert missed.check(item(due_at=ago(-3_600)), webhook(300)).reason == WEBHOOK


@pytest.mark.parametrize("code", [SYNC, "LOGIN_REPAIRED", "ERROR", "PENDING_DISCONNECT", "NEW_ACCOUNTS_AVAILABLE"])
def test_webhooks_that_mark_an_item_count(code: str) -> None:
    assert missed.check(item(), webhook(300, code)) == MISSED


@pytest.mark.parametrize(
    "code",
    ["RECURRING_TRANSACTIONS_UPDATE", "WEBHOOK_UPDATE_ACKNOWLEDGED", "SOMETHING_NEW", "", "\0", "DEFAULT_UPDATE"],
)
def test_webhooks_that_mark_nothing_are_not_looked_for(code: str) -> None:
    assert missed.check(item(), webhook(300, code)) == NOTHING


@pytest.mark.parametrize("code", ["INITIAL_UPDATE", "HISTORICAL_UPDATE", "DEFAULT_UPDATE"])
def test_legacy_webhooks_count_until_a_history_was_read(code: str) -> None:
    assert missed.check(item(has_history=False), webhook(300, code)) == MISSED


def test_a_webhook_of_the_time_before_the_item_was_registered_could_mark_nothing() -> None:
    assert missed.check(item(created_at=ago(299)), webhook(300)) == NOTHING


def test_a_bank_update_whose_webhook_caused_a_pass_at_once_causes_no_second_one() -> None:
    answer = webhook(300, last_successful_update=plaids(300.2))

    assert missed.check(item(last_webhook_at=ago(299.9), last_attempt_at=ago(299.8)), answer) == RECEIVED


def test_a_bank_update_after_the_last_pass_is_worth_a_sync() -> None:
    assert missed.check(item(), said(last_successful_update=plaids(300))) == Finding(reason=UPDATE)


@pytest.mark.parametrize("updated_s", [700.0, GRACE_S - 1])
def test_a_bank_update_that_was_read_or_may_still_be_told_is_not(updated_s: float) -> None:
    assert missed.check(item(), said(last_successful_update=plaids(updated_s))) == NOTHING


@pytest.mark.parametrize("failed", [None, plaids(300)])
def test_an_error_that_is_not_known_here_makes_the_item_due(failed: str | None) -> None:
    answer = said(error_type="ITEM_ERROR", error_code="ITEM_LOGIN_REQUIRED", last_failed_update=failed)

    assert missed.check(item(), answer) == Finding(reason=ERROR)
    assert missed.check(item(stopped="login_required"), answer) == NOTHING


def test_an_error_that_says_nothing_about_the_item_does_not() -> None:
    answer = said(error_type="INSTITUTION_ERROR", error_code="INSTITUTION_DOWN")

    assert missed.check(item(), answer) == NOTHING


def test_a_login_that_was_repaired_makes_the_item_due() -> None:
    assert missed.check(item(stopped="login_required"), said()) == Finding(reason=REPAIR)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-02T11:55:00", "9999"])
def test_what_is_no_time_stops_nothing(text: str) -> None:
    missed.check(item(), said(last_webhook_at=text, last_webhook_code=SYNC, last_successful_update=text))


def test_counts_add_up_and_the_hour_forgets() -> None:
    loss = missed.add_counts(None, NOW, sent=10, missed=1)
    for step in range(1, WINDOWS):
        loss = missed.add_counts(loss, NOW + timedelta(seconds=step * WINDOW_S), sent=10, missed=0)
    whole_hour = missed.loss_ratio(loss)
    later = missed.add_counts(loss, NOW + timedelta(seconds=WINDOWS * WINDOW_S), sent=0, missed=0)

    assert (loss.sent, loss.missed, loss.since) == (120, 1, NOW.isoformat())
    assert (whole_hour, missed.loss_ratio(later)) == (1 / 120, 0.0)
    assert len(loss.windows) == WINDOWS
    assert (later.sent, later.missed) == (120, 1)


def test_counts_of_a_process_whose_clock_is_behind_are_kept() -> None:
    ahead = missed.add_counts(None, NOW + timedelta(seconds=WINDOW_S), sent=5, missed=5)

    loss = missed.add_counts(ahead, NOW, sent=5, missed=0)

    assert missed.loss_ratio(loss) == 0.5


@pytest.mark.parametrize(
    ("sent", "lost", "alarming"), [(1_000, 11, True), (1_000, 10, False), (4, 3, True), (2, 2, False), (0, 0, False)]
)
def test_operators_are_told_of_more_than_a_percent_and_not_of_chance(sent: int, lost: int, alarming: bool) -> None:
    assert missed.is_alarming(missed.add_counts(None, NOW, sent=sent, missed=lost)) is alarming


def test_nothing_counted_is_no_loss() -> None:
    assert missed.loss_ratio(Loss(0, 0, NOW.isoformat())) == 0.0
