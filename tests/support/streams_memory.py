"""A world of memory for passes over Items: it raises and answers what it is told to, and remembers what it is asked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec

from runtime.plaid.client import PlaidRefused
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import AccountsAnswer, SyncPage
from runtime.scheduler.types import Claimed, Claims, KnownHead, Released
from schemas.encoding import codec
from schemas.log import changesets
from schemas.log.changesets import UserKeys, user_keys
from schemas.log.records import Account, Cause, Head, Transaction
from streams.fetch_deltas import FetchDeltas
from streams.ports import SyncContext

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEYS = user_keys(bytes(32), 1)
HEAD = KnownHead(b"h" * 16, 4, NOW, False, "c0", "active", None, "HISTORICAL_UPDATE_COMPLETE", {})
CLAIMED = Claimed(
    item_id="item",
    tenant="t",
    user=1,
    partition=2,
    institution_id="ins_1",
    institution_name="Bank",
    sealed_token=b"sealed",
    lease=b"l",
    expired=False,
    generation=5,
    lane=0,
    cause=Cause("webhook"),
    unlink_requested=False,
    accounts_wanted=False,
    accounts_at=NOW,
    attempts=0,
    not_ready=0,
    head=HEAD,
    hints=(),
)
TRANSACTION = Transaction("t1", "a", "1", "USD", None, False, None, "2026-01-01")
PAGE = SyncPage([TRANSACTION], [], [], [], "c1", False, "HISTORICAL_UPDATE_COMPLETE", "r1")


def account(name: str) -> Account:
    return Account(name, None, None, None, None, "depository", None, current="1")


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
    values: list[bytes] = field(default_factory=list)
    cursors: list[str | None] = field(default_factory=list)
    bank_accounts: list[list[str]] = field(default_factory=lambda: [["a"]])
    bank_item: dict[str, str] = field(default_factory=dict)
    before_append: Callable[[], Awaitable[None]] | None = None
    holds: bool = True
    gone: tuple[int, int] = (0, 10)
    user_keys: UserKeys | None = KEYS
    access_token: str | None = "access"
    waits: asyncio.Event | None = None

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        if self.waits is not None:
            await self.waits.wait()
        self.cursors.append(cursor)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def accounts(self, token: str) -> AccountsAnswer:
        self.told.append("accounts")
        self._may_raise("accounts")
        named = self.bank_accounts.pop(0) if len(self.bank_accounts) > 1 else self.bank_accounts[0]
        return AccountsAnswer([account(name) for name in named], "r2")

    async def item(self, token: str) -> ItemAnswer:
        self.told.append("item")
        self._may_raise("item")
        return ItemAnswer(**(dict.fromkeys(ItemAnswer._fields) | {"item_id": "item"} | self.bank_item))

    async def refresh(self, token: str) -> None:
        self.told.append("refresh")
        self._may_raise("refresh")

    async def remove(self, token: str) -> None:
        self.told.append("remove")
        self._may_raise("remove")

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        if self.before_append is not None:
            await self.before_append()
        self._may_raise("append")
        self.values.append(value)
        self.heads.append(changesets.read(value).head)
        return 100 + len(self.heads)

    async def end(self, partition: int) -> int:
        return 42

    async def claim(self, slots: int) -> Claims:
        return Claims()

    async def renew(self, claimed: Claimed) -> bool:
        return self.holds

    async def release(self, claimed: Claimed, result: Released) -> bool:
        self.released.append(result)
        return True

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        self.told.append(f"release_untouched {wait_offset}")

    async def expire(self, claimed: Claimed) -> None:
        self.told.append("expire")

    async def finish_unlink(self, claimed: Claimed) -> None:
        self.told.append("finish_unlink")

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        self.told.append(f"quarantine {reason}")

    async def keys(self, user: int) -> UserKeys | None:
        self._may_raise("keys")
        return self.user_keys

    def token(self, claimed: Claimed) -> str | None:
        return self.access_token

    async def count_gone(self) -> tuple[int, int]:
        return self.gone

    def events(self, number: int) -> list[tuple[str, Any]]:
        """What the n-th appended record says."""
        block = changesets.unseal(changesets.read(self.values[number]), KEYS)
        return [(event.type, codec.decode_event(event)) for event in codec.decode_events(block)]

    def _may_raise(self, call: str) -> None:
        if call in self.raises:
            raise self.raises[call]


async def fetched(
    memory: Memory,
    *,
    lease_s: float = 60.0,
    world: dict[str, Any] | None = None,
    claimed_at: float | None = None,
    **changed: Any,
) -> Released | None:
    """One pass; what the Item was released with. `world`: of what it is made in, `changed`: of the claim."""

    async def sleep(_: float) -> None:
        memory.told.append("slept")

    context = SyncContext(
        bank=memory,
        log=memory,
        store=memory,
        clock=lambda: NOW,
        sleep=sleep,
        random=lambda: 0.0,
        nonce=lambda: bytes(12),
        accounts_interval_s=86_400.0,
    )._replace(**world or {})
    started_at = context.monotonic() if claimed_at is None else claimed_at
    await FetchDeltas(context, lease_s=lease_s).fetch(
        msgspec.structs.replace(CLAIMED, **changed), claimed_at=started_at
    )
    return memory.released[-1] if memory.released else None
