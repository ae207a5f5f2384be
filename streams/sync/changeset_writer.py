"""The end of an Item's chain within a pass, and what the pass appends to it. Shell.

Several records of one pass chain on each other without waiting for the follower.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from runtime.crash_points import CrashPoint, reach
from runtime.scheduler.types import Claimed
from schemas.errors import Quarantine
from schemas.log import gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account
from streams import metrics
from streams.ports import SyncContext
from streams.sync import changeset, chunks
from streams.sync.changeset import Draft, Subject
from streams.sync.chunks import Composed

CHANGES_ON_LOOP_MAX = 500
"""Changes encoded on the event loop, about 5 ms; more are encoded in a thread, so that webhooks do not wait."""
REQUEST_IDS_MAX = 20
"""Of Plaid's request ids kept in a head: those of the last pages, about 16 bytes each."""

Result = TypeVar("Result")


class Unrecordable(Quarantine):
    """No record can be made of this update, however often it is read."""


class Chain:
    """What is appended of one Item. `offset`: of its last record; `counts`: events by type."""

    def __init__(self, world: SyncContext, claimed: Claimed, keys: UserKeys) -> None:
        self._world = world
        self._claimed = claimed
        self._keys = keys
        self.tip = changeset.tip_of(claimed.head)
        self.hints_until = claimed.hints[-1].offset if claimed.hints else None
        self.request_ids: list[str] = []
        self.subject = Subject(
            claimed.item_id,
            claimed.user,
            claimed.cause,
            claimed.institution_id,
            claimed.institution_name,
            fetch_started_at=world.clock(),
        )
        self.offset: int | None = None
        self.counts: dict[str, int] = {}

    async def append_if_news(self, draft: Draft) -> bool:
        """Append what the chain does not say yet. Raises: Unrecordable, Retry; InDoubt, without an answer."""
        if not changeset.is_news(self.tip, draft, now=self._world.clock()):
            return False
        await self.append(draft)
        return True

    async def append(self, draft: Draft) -> None:
        """Append an update: its parts where it has any, one after the other, then the record that names them.

        Parts that nothing names have no effect, so whatever happens between two of them costs only their room.
        Raises: Unrecordable, Retry; InDoubt, without an answer.
        """
        subject, at = self._subject_of(draft), self._world.clock()
        composed = await off_loop(len(draft.events), lambda: self._composed(draft, subject, at))
        for part in composed.parts:
            await self._world.log.append(self._claimed.partition, composed.sealed.key, part.value)
            metrics.PARTS.inc()
            reach(CrashPoint.FETCH_AFTER_PART)
        reach(CrashPoint.FETCH_BEFORE_APPEND)
        self.offset = await self._world.log.append(self._claimed.partition, composed.sealed.key, composed.sealed.value)
        reach(CrashPoint.FETCH_AFTER_APPEND)
        self.tip = composed.sealed.tip
        self._count(composed.sealed.counts)

    def prints(self, accounts: Mapping[str, Account]) -> dict[str, bytes]:
        """The fingerprints of accounts, under their pseudonyms."""
        return {self.pseudonym(name): changeset.fingerprint(account, self._keys) for name, account in accounts.items()}

    def pseudonym(self, account_id: str) -> str:
        """The name of an account in clear heads."""
        return changeset.pseudonym(account_id, self._keys)

    def _subject_of(self, draft: Draft) -> Subject:
        cause = msgspec.structs.replace(self._claimed.cause, request_ids=self.request_ids[-REQUEST_IDS_MAX:])
        # Only the record that tells what a hint led to has dealt with it; a root comes before anything was asked.
        until = None if draft.type == gate.LINK else self.hints_until
        return self.subject._replace(cause=cause, hints_until=until)

    def _composed(self, draft: Draft, subject: Subject, at: datetime) -> Composed:
        """Raises: Unrecordable, where one event is larger than a record may be."""
        try:
            return chunks.compose(
                draft,
                subject,
                self.tip,
                self._keys,
                at=at,
                nonce=self._world.nonce,
                bytes_max=self._world.record_bytes_max,
            )
        except Quarantine as error:
            raise Unrecordable(str(error)) from error

    def _count(self, counts: Mapping[str, int]) -> None:
        for kind, count in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            metrics.CHANGES.labels(kind).inc(count)
        received_at = self._claimed.cause.webhook_received_at
        if received_at is not None:
            late_s = self._world.clock().timestamp() - received_at / 1e6
            metrics.WEBHOOK_TO_CHANGESET.observe(max(late_s, 0.0))


async def off_loop(changes: int, work: Callable[[], Result]) -> Result:
    """Do work that takes longer the more changes there are: at once, or in the loop's own executor."""
    if changes <= CHANGES_ON_LOOP_MAX:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)
