"""A lost cursor: the whole history is read again, and one record says what there is and how far that can be trusted."""

from datetime import date
from typing import Any

import msgspec
import pytest

from runtime.plaid.models import HISTORY_COMPLETE, SyncPage
from runtime.scheduler.types import CURSOR_LOST, KnownHead
from schemas.errors import Retry
from schemas.events import BALANCE_REPORTED, HISTORY_RESTATED, TRANSACTION_ADDED, TRANSACTION_REMOVED
from schemas.log import gate
from schemas.log.records import History, Removal, Transaction
from streams.heads import HeadRecord, ItemHead, apply_records
from streams.sync import backoff, changeset, full_resync
from streams.sync.pages import merge_pages
from tests.support.streams_memory import CLAIMED, HEAD, KEYS, PAGE, Memory, account, fetched, refusal

LOST = refusal("INVALID_FIELD", "INVALID_REQUEST")
MUTATION = refusal("TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION", "TRANSACTIONS_ERROR")
WHOLE = PAGE._replace(next_cursor="c9")


def transaction(name: str, day: str = "2026-01-01") -> Transaction:
    return Transaction(name, "a", "1", "USD", None, False, None, day)


def known(*accounts: str) -> Any:
    """A head whose chain knows these accounts."""
    prints = {changeset.pseudonym(name, KEYS): changeset.fingerprint(account(name), KEYS) for name in accounts}
    return msgspec.structs.replace(HEAD, fingerprints=prints)


def lacked_account(memory: Memory, before: KnownHead) -> bool | None:
    """What the follower concludes of the last record; None: nothing, there is no whole history in it."""
    read = HeadRecord(CLAIMED.partition, 101, memory.heads[-1])
    item = ItemHead(CLAIMED.user, CLAIMED.partition, before, None)
    return apply_records([read], {CLAIMED.item_id: item}, erased=()).histories.get(CLAIMED.item_id)


async def test_a_refused_cursor_becomes_one_record_of_the_whole_history() -> None:
    second = PAGE._replace(added=[transaction("t2", "2025-12-30")], next_cursor="c9")
    memory = Memory(answers=[LOST, PAGE._replace(has_more=True), second])

    result = await fetched(memory, head=known("a"))

    [head] = memory.heads
    assert (head.kind, head.type, head.parent) == (gate.CHAINED, gate.RESTATED, HEAD.id)
    assert (head.base_cursor, head.next_cursor, head.history_status) == ("c0", "c9", HISTORY_COMPLETE)
    assert head.cause.kind == "webhook"
    assert memory.cursors == ["c0", None, "c1"]
    covered = History(["a"], "2024-01-03", None, complete=True, removals_permille_max=200)
    assert memory.events(0) == [
        (HISTORY_RESTATED, covered),
        (TRANSACTION_ADDED, PAGE.added[0]),
        (TRANSACTION_ADDED, transaction("t2", "2025-12-30")),
        (BALANCE_REPORTED, account("a")),
    ]
    assert result is not None
    assert (result.outcome, result.done, result.synced, result.wait_offset) == ("appended", True, True, 101)
    assert (result.pages, result.added, result.accounts_read) == (2, 2, True)


async def test_a_new_cursor_is_tried_soon_and_where_each_is_refused_whole_histories_come_in_hours() -> None:
    released = [await fetched(Memory(answers=[LOST, WHOLE]), attempts=attempts) for attempts in range(7)]
    good = await fetched(Memory(answers=[WHOLE]), attempts=1)

    assert [result and result.attempts for result in released] == [1, 2, 3, 4, 5, 6, 7]
    assert [result and result.due_in_s for result in released] == [1, 2, 4, 8, 16, 3_600, 7_200]
    assert [result and result.not_before_s for result in released] == [1, 2, 4, 8, 16, 3_600, 7_200]
    assert good is not None
    assert (good.outcome, good.attempts, good.due_in_s) == ("appended", 0, None)


async def test_a_history_that_says_nothing_new_is_told_all_the_same() -> None:
    memory = Memory(answers=[LOST, WHOLE._replace(added=[], next_cursor="c0")])

    await fetched(memory, head=known("a"))

    assert [head.type for head in memory.heads] == [gate.RESTATED]


async def test_an_update_that_never_ends_is_a_lost_cursor_after_five_passes() -> None:
    loops = [answer for _ in range(backoff.RESTARTS_MAX + 1) for answer in (PAGE._replace(has_more=True), MUTATION)]

    fourth = Memory(answers=[*loops])
    early = await fetched(fourth, attempts=backoff.ATTEMPTS_MAX - 2)
    fifth = Memory(answers=[*loops, WHOLE])
    late = await fetched(fifth, attempts=backoff.ATTEMPTS_MAX - 1)

    assert early is not None
    assert (early.outcome, fourth.heads) == ("failed", [])
    assert late is not None
    assert (late.outcome, fifth.cursors[-1]) == ("appended", None)
    assert [head.type for head in fifth.heads] == [gate.RESTATED]


async def test_a_history_that_mutates_all_the_time_fails_like_any_update() -> None:
    loops = [answer for _ in range(backoff.RESTARTS_MAX + 1) for answer in (PAGE._replace(has_more=True), MUTATION)]
    memory = Memory(answers=[LOST, *loops])

    result = await fetched(memory)

    assert result is not None
    assert (result.outcome, result.due_in_s, memory.heads) == ("failed", 1.0, [])


@pytest.mark.parametrize(
    "page",
    [
        PAGE._replace(status="INITIAL_UPDATE_COMPLETE"),
        PAGE._replace(status="TRANSACTIONS_UPDATE_STATUS_UNKNOWN"),
        PAGE._replace(status=None),
        SyncPage([], [], [], [], "", False, "NOT_READY", "r"),
    ],
)
async def test_nothing_is_said_of_a_history_that_plaid_has_not_read_to_its_end(page: SyncPage) -> None:
    memory = Memory(answers=[LOST, page])

    result = await fetched(memory, attempts=4)

    assert memory.heads == []
    assert result is not None
    assert (result.outcome, result.done, result.not_ready, result.attempts) == ("not_ready", False, 1, 4)


async def test_an_account_that_is_missing_leaves_removals_unconcluded() -> None:
    memory = Memory(answers=[LOST, WHOLE])

    await fetched(memory, head=known("a", "b", "c"))

    [(_, covered), *_] = memory.events(0)
    assert (covered.account_ids, covered.complete) == (["a"], False)
    assert covered.incomplete_because == "2 of 3 known accounts are not named"
    assert lacked_account(memory, known("a", "b", "c")) is True


@pytest.mark.parametrize("answers", [[LOST, WHOLE], [WHOLE]])
async def test_accounts_are_asked_for_once_before_the_history_and_once_after_it(
    answers: list[SyncPage | Exception],
) -> None:
    memory = Memory(answers=[*answers])

    await fetched(memory, head=known("a"), history_incomplete=len(answers) == 1)

    assert [head.type for head in memory.heads] == [gate.RESTATED]
    assert memory.told.count("accounts") == 2


async def test_a_history_that_lacked_an_account_is_read_again_once_that_is_back() -> None:
    memory = Memory(answers=[WHOLE], bank_accounts=[["a", "b"]])

    await fetched(memory, head=known("a", "b"), history_incomplete=True)

    [(_, covered), *_] = memory.events(0)
    assert ([head.type for head in memory.heads], covered.complete) == ([gate.RESTATED], True)
    assert memory.cursors == [None]
    assert lacked_account(memory, known("a", "b")) is False


async def test_while_the_account_is_missing_still_what_changes_is_synced_all_the_same() -> None:
    memory = Memory(answers=[WHOLE], bank_accounts=[["a"]])

    result = await fetched(memory, head=known("a", "b"), history_incomplete=True)

    assert [head.type for head in memory.heads] == [gate.SYNC]
    assert memory.cursors == ["c0"]
    assert result is not None
    assert (result.outcome, lacked_account(memory, known("a", "b"))) == ("appended", None)


@pytest.mark.parametrize("named", [[["a"], ["a", "b"]], [["a", "b"], ["a"]]])
async def test_an_account_that_comes_or_goes_meanwhile_counts_as_missing(named: list[list[str]]) -> None:
    memory = Memory(answers=[LOST, WHOLE], bank_accounts=named)

    await fetched(memory, head=known("a", "b"))

    [(_, covered), *_] = memory.events(0)
    assert (covered.account_ids, covered.complete) == (["a"], False)
    assert lacked_account(memory, known("a", "b")) is True


async def test_an_account_that_only_the_history_itself_names_is_one_that_is_lacked() -> None:
    memory = Memory(answers=[LOST, WHOLE._replace(accounts=[account("b")])])

    await fetched(memory, head=known("a", "b"))

    [(_, covered), *_] = memory.events(0)
    assert (covered.account_ids, covered.complete) == (["a"], False)
    assert lacked_account(memory, known("a", "b")) is True


@pytest.mark.parametrize("error", [refusal("ACCOUNTS_LIMIT", "RATE_LIMIT_EXCEEDED"), Retry("no answer from Plaid")])
async def test_without_the_accounts_there_is_no_record(error: Exception) -> None:
    memory = Memory(answers=[LOST, WHOLE], raises={"accounts": error})

    result = await fetched(memory)

    assert memory.heads == []
    assert result is not None
    assert (result.done, result.stopped) == (False, None)


async def test_a_cursor_that_is_refused_between_pages_is_no_lost_one() -> None:
    memory = Memory(answers=[PAGE._replace(has_more=True), LOST, PAGE])

    await fetched(memory)

    assert memory.cursors == ["c0", "c1", "c0"]
    assert [head.type for head in memory.heads] == [gate.SYNC]


async def test_a_first_history_whose_own_cursors_are_refused_is_tried_again() -> None:
    loops = [answer for _ in range(backoff.RESTARTS_MAX + 1) for answer in (PAGE._replace(has_more=True), LOST)]

    result = await fetched(Memory(answers=loops), head=msgspec.structs.replace(HEAD, cursor=None))

    assert result is not None
    assert (result.outcome, result.stopped, result.due_in_s) == ("failed", None, 1.0)


async def test_a_field_that_is_wrong_without_a_cursor_is_a_state_that_an_operator_sees() -> None:
    memory = Memory(answers=[LOST, LOST])

    result = await fetched(memory)

    assert [(head.type, head.item_state, head.item_code) for head in memory.heads] == [
        (gate.STATE, "refused", "INVALID_FIELD")
    ]
    assert result is not None
    assert (result.outcome, result.stopped, result.due_in_s) == ("stopped", "refused", None)


def covered(*days: str, share: float = 0.2) -> History:
    update = merge_pages([PAGE._replace(added=[transaction(day, day) for day in days])], fresh=True)
    return full_resync.history(
        update,
        ["b", "a"],
        known=["p"],
        pseudonyms={"a": "p", "b": "q"},
        today=date(2026, 1, 2),
        days_requested=30,
        removals_share_max=share,
    )


def test_the_window_begins_where_anything_that_is_missing_would_have_been_sent() -> None:
    assert covered("2025-06-01", "2025-12-31").since == "2025-06-01"
    assert covered("2025-12-31").since == "2025-12-03"
    assert covered().since == "2025-12-03"


@pytest.mark.parametrize(("share", "permille"), [(0.0, 0), (0.2, 200), (0.0015, 2), (1.0, 1000)])
def test_the_share_that_needs_no_person_is_said_in_permille(share: float, permille: int) -> None:
    assert covered(share=share).removals_permille_max == permille


def test_of_a_whole_history_everything_is_added_and_what_is_told_removed_stays_removed() -> None:
    pages = [PAGE._replace(added=[], modified=[transaction("t2")], removed=[Removal("t0", "a")])]

    encoded = full_resync.encode(covered(), merge_pages(pages, fresh=True))

    assert [kind for kind, _, _ in encoded] == [HISTORY_RESTATED, TRANSACTION_ADDED, TRANSACTION_REMOVED]


async def test_a_banks_outage_before_it_makes_no_hours_of_the_first_new_cursor() -> None:
    first = await fetched(Memory(answers=[LOST, WHOLE]), attempts=12, last_code="INSTITUTION_DOWN")
    again = await fetched(Memory(answers=[LOST, WHOLE]), attempts=5, last_code=CURSOR_LOST)
    unready = await fetched(Memory(answers=[LOST, PAGE._replace(status=None)]), attempts=12, last_code="late")

    assert first is not None
    assert (first.attempts, first.due_in_s, first.not_before_s) == (5, 16, 16)
    assert first.error == {"code": CURSOR_LOST, "detail": "the whole history was read, because of cursor"}
    assert again is not None
    assert (again.attempts, again.not_before_s) == (6, 3_600)
    assert unready is not None
    assert unready.attempts == 4


async def test_a_history_that_plaid_never_calls_complete_counts_after_hours_for_what_it_names() -> None:
    memory = Memory(answers=[LOST, PAGE._replace(status=None)])

    result = await fetched(memory, head=known("a"), not_ready=backoff.NOT_READY_ANSWERS_MAX)

    assert result is not None
    assert (result.outcome, result.not_ready, lacked_account(memory, known("a"))) == ("appended", 0, False)
    (_, covered), (kind, _), *_ = memory.events(0)
    assert (covered.complete, kind) == (False, TRANSACTION_ADDED)
    assert covered.incomplete_because == "Plaid has not said that it is complete: None"


async def test_a_history_that_is_not_there_at_all_is_never_taken_for_an_empty_one() -> None:
    memory = Memory(answers=[LOST, SyncPage([], [], [], [], "", False, "NOT_READY", "r")])

    result = await fetched(memory, not_ready=backoff.NOT_READY_ANSWERS_MAX)

    assert result is not None
    assert (result.outcome, memory.heads) == ("not_ready", [])
