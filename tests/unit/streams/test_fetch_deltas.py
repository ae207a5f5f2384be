"""Passes over Items in a world of memory: what becomes of a lease when something goes wrong."""

import asyncio
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from runtime.kafka.clients import InDoubt
from schemas.errors import Quarantine, Retry
from tests.support.streams_memory import GONE, HEAD, PAGE, Memory, fetched, refusal


async def test_a_pass_appends_on_the_head_and_releases_behind_its_append() -> None:
    memory = Memory()

    result = await fetched(memory)

    [head] = memory.heads
    assert (head.parent, head.base_cursor, head.next_cursor, head.cause.request_ids) == (HEAD.id, "c0", "c1", ["r1"])
    assert result is not None
    assert (result.outcome, result.done, result.synced, result.wait_offset) == ("appended", True, True, 101)
    assert (result.pages, result.added, result.due_in_s) == (1, 1, None)


async def test_an_expired_lease_only_waits_for_the_end_of_the_log() -> None:
    memory = Memory()

    assert await fetched(memory, expired=True) is None

    assert memory.told == ["release_untouched 41"]
    assert memory.heads == []


async def test_an_append_without_an_answer_ends_the_lease_instead_of_releasing() -> None:
    memory = Memory(raises={"append": InDoubt("no answer")})

    assert await fetched(memory) is None

    assert memory.told == ["expire"]


async def test_a_lost_lease_stops_the_pass() -> None:
    memory = Memory(holds=False, waits=asyncio.Event())

    assert await asyncio.wait_for(fetched(memory, lease_s=0.03), 5) is None

    assert memory.heads == []


class Counting:
    """Limits with room for everything, or for nothing for a while."""

    def __init__(self, short: Retry | None = None) -> None:
        self.taken: list[str] = []
        self.exceeded_by: list[str] = []
        self._short = short

    async def take(self, endpoint: str, item_id: str) -> None:
        self.taken.append(endpoint)
        if self._short is not None:
            raise self._short

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        self.exceeded_by.append(error_code)

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        return

    async def institution_answered(self, institution_id: str) -> None:
        return


async def test_every_request_but_the_first_page_takes_its_tokens() -> None:
    limits = Counting()
    memory = Memory(answers=[PAGE._replace(has_more=True), PAGE._replace(next_cursor="c2")])

    await fetched(memory, world={"limits": limits}, accounts_wanted=True)

    assert limits.taken == ["transactions/sync", "accounts/get"]


async def test_a_limit_that_plaid_answers_moves_the_bucket() -> None:
    limits = Counting()

    result = await fetched(
        Memory(answers=[refusal("TRANSACTIONS_SYNC_LIMIT", "RATE_LIMIT_EXCEEDED")]), world={"limits": limits}
    )

    assert limits.exceeded_by == ["TRANSACTIONS_SYNC_LIMIT"]
    assert result is not None
    assert (result.outcome, result.attempts) == ("limited", 0)


async def test_a_quota_of_ours_that_is_used_up_is_no_failure_and_begins_no_update_again() -> None:
    memory = Memory(answers=[PAGE._replace(has_more=True)])

    result = await fetched(memory, world={"limits": Counting(Retry("nothing left", wait_s=40.0))})

    assert result is not None
    assert (result.outcome, result.due_in_s, result.attempts) == ("limited", 40.0, 0)
    assert (memory.cursors, memory.told) == (["c0"], [])


async def test_a_lease_counts_from_the_time_of_the_claim_and_a_dead_one_asks_and_gives_back_nothing() -> None:
    asleep, awake = Memory(), Memory()
    world = {"limits": Counting(), "monotonic": lambda: 1_000.0}

    slept = await fetched(asleep, lease_s=30.0, world=world, claimed_at=970.0)
    renewed = await fetched(awake, lease_s=30.0, world=world, claimed_at=970.5)

    assert (slept, asleep.cursors, asleep.heads, asleep.released) == (None, [], [], [])
    assert renewed is not None
    assert renewed.outcome == "appended"


async def test_a_page_that_lacks_its_fields_is_tried_again_and_then_quarantines_its_item() -> None:
    broken = Quarantine("Plaid's answer is no StrictPage")

    first = await fetched(Memory(answers=[broken]))
    last = Memory(answers=[broken])
    quarantined = await fetched(last, attempts=4)

    assert first is not None
    assert (first.outcome, first.stopped, first.due_in_s) == ("failed", None, 1.0)
    assert quarantined is not None
    assert quarantined.stopped == "quarantined"
    assert last.told == ["quarantine Quarantine: Plaid's answer is no StrictPage"]


async def test_our_own_mistake_sets_one_item_aside_and_says_nothing_of_its_data() -> None:
    memory = Memory(answers=[KeyError("4111 1111 1111 1111")])

    result = await fetched(memory, attempts=4)

    assert result is not None
    assert (result.stopped, result.error) == ("quarantined", {"code": "KeyError", "detail": ""})


async def test_a_failure_after_the_root_waits_for_the_root_all_the_same() -> None:
    memory = Memory(answers=[Retry("no answer from Plaid")])

    result = await fetched(memory, head=None, accounts_at=None, accounts_wanted=True)

    assert [head.type for head in memory.heads] == ["link"]
    assert result is not None
    assert (result.outcome, result.wait_offset, result.accounts_read) == ("failed", 101, True)


async def test_a_link_whose_login_is_broken_already_is_told_without_accounts() -> None:
    memory = Memory(raises={"accounts": refusal("ITEM_LOGIN_REQUIRED"), "item": refusal("ITEM_LOGIN_REQUIRED")})

    result = await fetched(memory, head=None)

    assert [(head.type, head.item_state) for head in memory.heads] == [("link", "login_required")]
    assert result is not None
    assert (result.outcome, result.stopped, result.due_in_s) == ("stopped", "login_required", None)


async def test_accounts_that_cannot_be_read_do_not_cost_the_transactions() -> None:
    memory = Memory(raises={"accounts": refusal("ACCOUNTS_LIMIT", "RATE_LIMIT_EXCEEDED")})

    result = await fetched(memory, accounts_wanted=True)

    assert result is not None
    assert (result.outcome, result.accounts_read) == ("appended", False)


async def test_an_item_that_is_gone_stops() -> None:
    memory = Memory(answers=[GONE])

    result = await fetched(memory)

    assert result is not None
    assert (memory.heads[0].item_state, result.stopped) == ("gone", "gone")
    assert result.error == {"code": "INVALID_ACCESS_TOKEN", "detail": "INVALID_INPUT", "request_id": "r"}


@pytest.mark.parametrize(
    ("code", "kind"), [("INSTITUTION_NO_LONGER_SUPPORTED", "INSTITUTION_ERROR"), ("MISSING_FIELDS", "INVALID_REQUEST")]
)
async def test_what_plaid_never_serves_is_a_state_that_is_told_once(code: str, kind: str) -> None:
    first = Memory(answers=[refusal(code, kind)])
    result = await fetched(first)
    again = Memory(answers=[refusal(code, kind)], raises={"item": refusal(code, kind)})
    silent = await fetched(again, head=msgspec.structs.replace(HEAD, state="refused", code=code))

    assert [(head.type, head.item_state, head.item_code) for head in first.heads] == [("state", "refused", code)]
    assert again.heads == []
    for released in (result, silent):
        assert released is not None
        assert (released.outcome, released.done, released.stopped, released.due_in_s) == (
            "stopped",
            True,
            "refused",
            None,
        )
        assert released.error is not None
        assert released.error["code"] == code


async def test_a_refused_item_goes_on_once_plaid_serves_it_again() -> None:
    memory = Memory()

    result = await fetched(memory, head=msgspec.structs.replace(HEAD, state="refused", code="ITEM_NOT_SUPPORTED"))

    assert [(head.type, head.item_state, head.item_code) for head in memory.heads] == [("sync", "active", None)]
    assert result is not None
    assert (result.outcome, result.stopped) == ("appended", None)


async def test_a_link_that_plaid_never_serves_is_told_without_accounts() -> None:
    never = refusal("ITEM_NOT_SUPPORTED")
    memory = Memory(raises={"accounts": never, "item": never})

    result = await fetched(memory, head=None)

    assert [(head.type, head.item_state) for head in memory.heads] == [("link", "refused")]
    assert result is not None
    assert result.stopped == "refused"


async def test_while_many_items_stop_at_once_a_request_that_is_wrong_stops_none() -> None:
    memory = Memory(answers=[refusal("MISSING_FIELDS", "INVALID_REQUEST")], gone=(30, 100))

    result = await fetched(memory)

    assert memory.heads == []
    assert result is not None
    assert (result.stopped, result.due_in_s) == (None, 3_600.0)


async def test_a_rate_limit_is_no_failure_of_the_item() -> None:
    memory = Memory(answers=[refusal("TRANSACTIONS_SYNC_LIMIT", "RATE_LIMIT_EXCEEDED")])

    result = await fetched(memory, attempts=3)

    assert result is not None
    assert (result.outcome, result.done, result.attempts) == ("limited", False, 3)
    assert (result.due_in_s, result.not_before_s) == (60.0, 60.0)


async def test_while_many_items_are_gone_none_is_taken_as_gone_and_the_process_goes_on() -> None:
    told_before = REGISTRY.get_sample_value("tartan_items_gone_suspected_total") or 0.0
    asked = msgspec.structs.replace(HEAD, state="login_required")

    for memory, changed in (
        (Memory(answers=[GONE], gone=(30, 100)), {}),
        (Memory(raises={"accounts": GONE}, gone=(9, 9)), {"head": None}),
        (Memory(raises={"item": GONE}, gone=(30, 100)), {"head": asked}),
    ):
        result = await fetched(memory, **changed)

        assert result is not None
        assert (result.outcome, result.done, result.stopped, result.due_in_s) == ("failed", False, None, 3_600.0)
        assert result.error is not None
        assert result.error["code"] == "too_many_gone"
        assert memory.heads == []
    assert REGISTRY.get_sample_value("tartan_items_gone_suspected_total") == told_before + 3


async def test_an_unlink_of_an_item_that_was_never_in_the_log_needs_no_record() -> None:
    memory = Memory(raises={"remove": refusal("ITEM_NOT_FOUND")})

    assert await fetched(memory, unlink_requested=True, head=None) is None

    assert memory.told == ["remove", "finish_unlink"]


async def test_an_unlink_that_plaid_refuses_for_now_is_tried_again() -> None:
    memory = Memory(raises={"remove": refusal("INTERNAL_SERVER_ERROR", "API_ERROR")})

    result = await fetched(memory, unlink_requested=True)

    assert result is not None
    assert (result.outcome, result.done, memory.heads) == ("failed", False, [])


@pytest.mark.parametrize("code", ["ITEM_NOT_FOUND", "ITEM_CONCURRENTLY_DELETED", "INVALID_ACCESS_TOKEN"])
async def test_an_unlink_of_an_item_that_plaid_removed_before_is_done(code: str) -> None:
    memory = Memory(raises={"remove": refusal(code)})

    result = await fetched(memory, unlink_requested=True)

    assert result is not None
    assert [head.type for head in memory.heads] == ["unlink"]
    assert result.outcome == "unlinked"


@pytest.mark.parametrize(
    ("code", "changed", "gone"),
    [
        ("INVALID_ACCESS_TOKEN", {}, (30, 100)),
        ("INVALID_ACCESS_TOKEN", {"head": msgspec.structs.replace(HEAD, state="gone")}, (0, 10)),
        ("INVALID_ACCESS_TOKEN", {"head": None}, (0, 10)),
        ("USER_PERMISSION_REVOKED", {}, (0, 10)),
        ("ITEM_LOGIN_REQUIRED", {}, (0, 10)),
        ("ITEM_NOT_SUPPORTED", {}, (0, 10)),
    ],
)
async def test_an_unlink_keeps_the_token_and_stays_due_while_plaid_may_have_removed_nothing(
    code: str, changed: dict[str, Any], gone: tuple[int, int]
) -> None:
    memory = Memory(raises={"remove": refusal(code)}, gone=gone)

    result = await fetched(memory, unlink_requested=True, **changed)

    assert result is not None
    assert (result.outcome, result.done, result.stopped, result.due_in_s) == ("failed", False, None, 3_600.0)
    assert (memory.heads, memory.told) == ([], ["remove"])


@pytest.mark.parametrize("state", [None, "gone"])
async def test_an_unlink_that_no_token_can_bring_about_ends_after_a_day_of_refusals(state: str | None) -> None:
    head = None if state is None else msgspec.structs.replace(HEAD, state=state)
    unknown = {"remove": GONE}

    early = await fetched(Memory(raises=unknown), unlink_requested=True, head=head, attempts=3)
    suspected = await fetched(Memory(raises=unknown, gone=(30, 100)), unlink_requested=True, head=head, attempts=4)
    believed = Memory(raises=unknown)
    late = await fetched(believed, unlink_requested=True, head=head, attempts=4)

    for result in (early, suspected):
        assert result is not None
        assert (result.done, result.stopped, (result.due_in_s or 0.0) >= 3_600.0) == (False, None, True)
    if head is None:
        assert (late, believed.told) == (None, ["remove", "finish_unlink"])
    else:
        assert late is not None
        assert [record.type for record in believed.heads] == ["unlink"]
        assert late.error == {"code": "INVALID_ACCESS_TOKEN", "detail": "taken for removed"}


async def test_an_unlink_is_never_set_aside() -> None:
    unreadable = Memory(raises={"remove": Quarantine("Plaid's answer is no _Done")})

    failed = await fetched(unreadable, unlink_requested=True, attempts=9)
    tokenless = await fetched(Memory(access_token=None), unlink_requested=True)

    for result in (failed, tokenless):
        assert result is not None
        assert (result.done, result.stopped) == (False, None)
        assert (result.due_in_s or 0.0) >= 3_600.0


async def test_an_unlink_without_a_key_ends_at_plaid_before_it_is_set_aside() -> None:
    no_key = Quarantine("user 1 has no key")
    removed = Memory(raises={"keys": no_key})
    found_removed = Memory(raises={"keys": no_key, "remove": refusal("ITEM_NOT_FOUND")})
    refused = Memory(raises={"keys": no_key, "remove": refusal("INVALID_ACCESS_TOKEN")})
    unanswered = Memory(raises={"keys": no_key, "remove": Retry("no answer from Plaid")})
    memories = (removed, found_removed, refused, unanswered)

    results = [await fetched(memory, unlink_requested=True) for memory in memories]

    assert [memory.told[0] for memory in memories] == ["remove"] * 4
    assert [result and result.stopped for result in results] == ["quarantined", "quarantined", None, None]
    assert [result and result.due_in_s for result in results] == [None, None, 3_600.0, 1.0]


async def test_an_item_of_an_erased_user_or_without_key_or_token_is_not_asked_about() -> None:
    erased = await fetched(Memory(user_keys=None))
    keyless = await fetched(Memory(raises={"keys": Quarantine("user 1 has no key")}))
    tokenless = await fetched(Memory(access_token=None))

    assert [result and result.stopped for result in (erased, keyless, tokenless)] == [
        "erased",
        "quarantined",
        "refused",
    ]


async def test_an_update_that_mutates_at_every_attempt_ends_in_a_wait() -> None:
    mutation = refusal("TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION", "TRANSACTIONS_ERROR")
    memory = Memory(answers=[answer for _ in range(9) for answer in (PAGE._replace(has_more=True), mutation)])

    result = await fetched(memory)

    assert memory.told == ["slept"] * 5
    assert result is not None
    assert (result.outcome, result.due_in_s, memory.heads) == ("failed", 1.0, [])


async def test_a_cursor_that_stands_still_is_no_loop_without_end() -> None:
    memory = Memory(answers=[PAGE._replace(has_more=True, next_cursor="c0")] * 9)

    result = await fetched(memory)

    assert result is not None
    assert (result.outcome, memory.heads) == ("failed", [])
