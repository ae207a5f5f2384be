"""Waits: exponential from a second, then hours; bounded however long it goes on."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from runtime.scheduler.types import Claimed
from schemas import times
from schemas.log.records import Cause
from streams.sync import backoff, outcomes
from streams.sync.plaid_errors import ErrorClass

CLAIMED = Claimed(
    item_id="item",
    tenant="t",
    user=1,
    partition=0,
    institution_id=None,
    institution_name=None,
    sealed_token=b"",
    lease=b"l",
    expired=False,
    generation=1,
    lane=0,
    cause=Cause("webhook"),
    unlink_requested=False,
    accounts_wanted=False,
    accounts_at=None,
    attempts=0,
    not_ready=0,
    head=None,
    hints=(),
)


def test_five_attempts_double_from_a_second_and_then_come_hours() -> None:
    assert [backoff.after_failure(attempts, 0.0) for attempts in range(1, 8)] == [1, 2, 4, 8, 16, 3600, 7200]


def test_jitter_stretches_a_wait_by_up_to_half() -> None:
    assert backoff.after_failure(1, 0.5) == 1.25
    assert 60 < backoff.after_rate_limit(0.999) < 90


@pytest.mark.parametrize("wait", [backoff.after_failure, backoff.after_outage, backoff.after_not_ready])
def test_no_wait_grows_for_ever(wait: object) -> None:
    assert wait(10_000, 0.99) <= 18 * 3600  # type: ignore[operator]


def test_a_limit_holds_back_whatever_is_marked_and_counts_as_no_failure() -> None:
    failing = msgspec.structs.replace(CLAIMED, attempts=3, not_ready=2)

    limited = outcomes.after_plaid_error(failing, ErrorClass.RATE_LIMIT, {"code": "RATE_LIMIT"}, jitter=0.0)
    outage = outcomes.after_plaid_error(failing, ErrorClass.OUTAGE, {}, jitter=0.0)

    assert (limited.outcome, limited.due_in_s, limited.not_before_s) == ("limited", 60.0, 60.0)
    assert (limited.attempts, limited.not_ready, limited.done) == (3, 2, False)
    assert (outage.outcome, outage.due_in_s, outage.not_before_s) == ("failed", 8 * 3600.0, None)
    assert outage.attempts == 4


def test_what_never_works_stops_and_what_is_unknown_is_tried_soon() -> None:
    never = outcomes.after_plaid_error(CLAIMED, ErrorClass.REJECTED, {}, jitter=0.0)
    soon = outcomes.after_plaid_error(CLAIMED, ErrorClass.TRANSIENT, {}, jitter=0.0)

    assert (never.stopped, never.due_in_s, never.done) == ("refused", None, True)
    assert (soon.stopped, soon.due_in_s) == (None, 1.0)


def test_a_history_that_is_not_there_counts_as_no_failure() -> None:
    result = outcomes.after_not_ready(CLAIMED, jitter=0.0)

    assert (result.attempts, result.not_ready, result.due_in_s) == (0, 1, 1.0)


def test_moments_are_exact_both_ways() -> None:
    started_at = datetime(2026, 11, 22, 8, 9, 10, 999_999, tzinfo=UTC)

    for step in range(1_000):
        moment = started_at + timedelta(microseconds=step * 7_919)
        assert times.from_micros(times.to_micros(moment)) == moment
