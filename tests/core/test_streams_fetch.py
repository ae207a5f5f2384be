"""Passes over Items in a world of memory: what becomes of a lease when something goes wrong."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from runtime.dues import Claimed, KnownHead, Released
from runtime.kafka import InDoubt
from runtime.plaid import PlaidRefused
from runtime.plaid_answers import AccountsAnswer, ItemAnswer, SyncPage
from schemas import changesets
from schemas.changesets import UserKeys, user_keys
from schemas.errors import Quarantine, Retry
from schemas.records import Account, Cause, Head, Transaction
from streams.fetch_deltas import FetchDeltas
from streams.passes import World

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEYS = user_keys(bytes(32), 1)
HEAD = KnownHead(b"h" * 16, 4, NOW, False, "c0", "active", None, "HISTORICAL_UPDATE_COMPLETE", {})
CLAIMED = Claimed(
    item_id="item", tenant="t", user=1, partition=2, institution_id="ins_1", institution_name="Bank",
    sealed_token=b"sealed", lease=b"l", expired=False, generation=5, lane=0, cause=Cause("webhook"),
    unlink_requested=False, accounts_wanted=False, accounts_at=NOW, attempts=0, not_ready=0, head=HEAD, hints=(),
)  # fmt: skip
TRANSACTION = Transaction("t1", "a", "1", "USD", None, False, None, "2026-01-01")
PAGE = SyncPage([TRANSACTION], [], [], [], "c1", False, "HISTORICAL_UPDATE_COMPLETE", "r1")


def refusal(code: str, kind: str = "ITEM_ERROR") -> PlaidRefused:
    return PlaidRefused(error_type=kind, error_code=code, status=400, request_id="r")


GONE = refusal("INVALID_ACCESS_TOKEN", "INVALID_INPUT")


@dataclass
class Memory:
    """Bank, log and store in one; what it is told to raise it raises, what it is asked it remembers."""

    answers: list[SyncPage | Exception] = field(default_factory=lambda: [PAGE])
    raises: dict[str, Exception] = field(default_factory=dict)
    heads: list[Head] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    holds: bool = True
    gone: tuple[int, int] = (0, 10)
    user_keys: UserKeys | None = KEYS
    access_token: str | None = "access"
    waits: asyncio.Event | None = None

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        if self.waits is not None:
            await self.waits.wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def accounts(self, token: str) -> AccountsAnswer:
        self._may_raise("accounts")
        return AccountsAnswer([Account("a", None, None, None, None, "depository", None, current="1")], "r2")

    async def item(self, token: str) -> ItemAnswer:
        self._may_raise("item")
        return ItemAnswer(**(dict.fromkeys(ItemAnswer._fields) | {"item_id": "item"}))  # type: ignore[arg-type]

    async def refresh(self, token: str) -> None:
        self.told.append("refresh")
        self._may_raise("refresh")

    async def remove(self, token: str) -> None:
        self.told.append("remove")
        self._may_raise("remove")

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        self._may_raise("append")
        self.heads.append(changesets.read(value).head)
        return 100 + len(self.heads)

    async def end(self, partition: int) -> int:
        return 42

    async def claim(self, slots: int) -> Sequence[Claimed]:
        return []

    async def renew(self, claimed: Claimed) -> bool:
        return self.holds

    async def release(self, claimed: Claimed, result: Released) -> bool:
        self.released.append(result)
        return True

    async def let_go(self, claimed: Claimed, *, wait_offset: int) -> None:
        self.told.append(f"let_go {wait_offset}")

    async def expire(self, claimed: Claimed) -> None:
        self.told.append("expire")

    async def finish_unlink(self, claimed: Claimed) -> None:
        self.told.append("finish_unlink")

    async def park(self, claimed: Claimed, reason: str) -> None:
        self.told.append(f"park {reason}")

    async def keys(self, user: int) -> UserKeys | None:
        self._may_raise("keys")
        return self.user_keys

    def token(self, claimed: Claimed) -> str | None:
        return self.access_token

    async def gone_lately(self) -> tuple[int, int]:
        return self.gone

    def _may_raise(self, what: str) -> None:
        if what in self.raises:
            raise self.raises[what]


async def fetched(memory: Memory, *, lease_s: float = 60.0, **changed: Any) -> Released | None:
    """One pass; what the Item was released with."""

    async def sleep(_: float) -> None:
        memory.told.append("slept")

    world = World(
        bank=memory, log=memory, store=memory, clock=lambda: NOW, sleep=sleep, random=lambda: 0.0,
        nonce=lambda: bytes(12), accounts_interval_s=86_400.0,
    )  # fmt: skip
    await FetchDeltas(world, lease_s=lease_s).fetch(msgspec.structs.replace(CLAIMED, **changed))
    return memory.released[-1] if memory.released else None


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

    assert memory.told == ["let_go 41"]
    assert memory.heads == []


async def test_an_append_without_an_answer_ends_the_lease_instead_of_releasing() -> None:
    memory = Memory(raises={"append": InDoubt("no answer")})

    assert await fetched(memory) is None

    assert memory.told == ["expire"]


async def test_a_lost_lease_stops_the_pass() -> None:
    memory = Memory(holds=False, waits=asyncio.Event())

    assert await asyncio.wait_for(fetched(memory, lease_s=0.03), 5) is None

    assert memory.heads == []


async def test_a_page_that_lacks_its_fields_is_tried_again_and_then_parks_its_item() -> None:
    broken = Quarantine("Plaid's answer is no StrictPage")

    first = await fetched(Memory(answers=[broken]))
    last = Memory(answers=[broken])
    parked = await fetched(last, attempts=4)

    assert first is not None
    assert (first.outcome, first.stopped, first.due_in_s) == ("failed", None, 1.0)
    assert parked is not None
    assert parked.stopped == "parked"
    assert last.told == ["park Quarantine: Plaid's answer is no StrictPage"]


async def test_our_own_mistake_sets_one_item_aside_and_says_nothing_of_its_data() -> None:
    memory = Memory(answers=[KeyError("4111 1111 1111 1111")])

    result = await fetched(memory, attempts=4)

    assert result is not None
    assert (result.stopped, result.error) == ("parked", {"code": "KeyError", "detail": ""})


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
    assert [result and result.stopped for result in results] == ["parked", "parked", None, None]
    assert [result and result.due_in_s for result in results] == [None, None, 3_600.0, 1.0]


async def test_an_item_of_an_erased_user_or_without_key_or_token_is_not_asked_about() -> None:
    erased = await fetched(Memory(user_keys=None))
    keyless = await fetched(Memory(raises={"keys": Quarantine("user 1 has no key")}))
    tokenless = await fetched(Memory(access_token=None))

    assert [result and result.stopped for result in (erased, keyless, tokenless)] == ["erased", "parked", "refused"]


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
